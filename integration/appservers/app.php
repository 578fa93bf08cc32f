<?php
// An app on PHP-FPM that says what it sees of a request: see harness_appservers_test.go.

function folded(string $name): string
{
    return preg_replace('/[^a-z0-9]/', '-', strtolower($name));
}

function member($value, string $name)
{
    return is_array($value) && array_key_exists($name, $value) ? $value[$name] : null;
}

$fields = [];
foreach ($_SERVER as $name => $value) {
    if (str_starts_with($name, 'HTTP_')) {
        $fields[] = [folded(substr($name, 5)), $value];
    }
}
foreach (getallheaders() as $name => $value) {
    $fields[] = [folded($name), $value];
}

$document = json_decode(file_get_contents('php://input'), true, 512);
$failure = json_last_error() === JSON_ERROR_NONE ? null : json_last_error_msg();
$analyses = member($document, 'analyses');
$quality = array_values(array_filter(is_array($analyses) ? $analyses : [], fn ($a) => member($a, 'type') === 'QUALITY'));

header('Content-Type: application/json');
echo json_encode([
    'server' => 'php',
    'decision' => $_SERVER['HTTP_X_OZ_DECISION'] ?? null,
    'fields' => $fields,
    'document' => [
        'system_resolution' => member($document, 'system_resolution'),
        'resolution_status' => member($document, 'resolution_status'),
        'folder_id' => member($document, 'folder_id'),
        'event_session_id' => member(member($document, 'meta_data'), 'event_session_id'),
        'quality' => count($quality) === 1 ? member($quality[0], 'resolution_status') : null,
    ],
    'failure' => $failure,
], JSON_THROW_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE | JSON_PARTIAL_OUTPUT_ON_ERROR);

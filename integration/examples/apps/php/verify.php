<?php
// A page in PHP that acts on each decision, and believes nothing but the seal. It needs SealVerifier, too: copy that file, and
// composer require phpseclib/phpseclib:~3.0; APCu keeps the keys. OZ_JWKS and OZ_AUDIENCE are in the environment.

require __DIR__ . '/../../verify/php/verify.php';

$seals = new SealVerifier(getenv('OZ_JWKS'), getenv('OZ_AUDIENCE'));
$answers = [
    'SUCCESS' => [200, 'welcome'],
    'DECLINED' => [403, 'declined'],
    'OPERATOR_REQUIRED' => [202, 'wait until a person has looked at it'],
    'FAILED' => [503, 'could not be checked: capture anew, later'],
    'INVALID' => [400, 'does not count: capture anew'],
    'UNAVAILABLE' => [503, 'not decided: capture anew, later'],
];

try {
    $claims = $seals->verify($_SERVER['HTTP_X_OZ_SEAL'] ?? '', file_get_contents('php://input'));
} catch (UnexpectedValueException) {
    $claims = [];
}
$user = signedInUser();
$own = $user !== '' && ($claims['sub'] ?? null) === $user;
[$status, $message] = ($own ? $answers[$claims['decision']] ?? null : null) ?? [403, 'not verified'];
http_response_code($status);
header('Content-Type: application/json');
echo json_encode(['message' => $message, 'reason' => $claims['reason'] ?? null]);

function signedInUser(): string
{
    return $_COOKIE['user'] ?? ''; // instead of your own sign-in: never believe a plain cookie
}

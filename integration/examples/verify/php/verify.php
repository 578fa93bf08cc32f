<?php
// Shows how an app in PHP verifies seals: copy SealVerifier, or require this file. It needs phpseclib 3 (composer require phpseclib/phpseclib:~3.0) and
// APCu, which keeps the keys from one request to the next.
//
//   php verify.php <jwks URL> <audience> <folder file, or - for none> [cool-down and life of keys, in seconds] < seals
//
// It reads a seal from each line and prints "ok <decision>" or why not; the exit code is 1 if one doesn't hold.
//
// Why not by firebase/php-jwt: Debian has no package of it to run this with. If your app has it, it can take the place of the lines
// from "explode" to the signature; what comes after them is still to be checked: typ, iss, aud and a missing exp or iat, at which
// it doesn't look.

use phpseclib3\Crypt\EC;
use phpseclib3\Math\BigInteger;

require 'phpseclib3/autoload.php'; // of Debian's package; with Composer: vendor/autoload.php

/** Verifies the seals of one site. */
final class SealVerifier
{
    private const LEEWAY = 30; // seconds

    /** Keys live for $maxAge seconds, so that one that the site takes back isn't trusted for ever. */
    public function __construct(private string $jwks, private string $audience, private int $coolDown = 30, private int $maxAge = 600)
    {
    }

    /**
     * Returns the claims of a seal that holds, and throws an UnexpectedValueException otherwise. $folder is the folder document as
     * the app received it, byte for byte: file_get_contents('php://input'), or $_POST['folder'] with best_shot attach. Without one
     * nothing holds: a genuine seal may come with a forged folder.
     */
    public function verify(string $seal, ?string $folder): array
    {
        $claims = $this->verifyWithoutFolder($seal);
        if (($folder ?? '') === '' || hash('sha256', $folder) !== ($claims['folder_sha256'] ?? null)) {
            throw new UnexpectedValueException('the folder is not the one that was sealed');
        }
        return $claims;
    }

    /** Is for an app that doesn't read the folder, which may be forged. */
    public function verifyWithoutFolder(string $seal): array
    {
        $parts = explode('.', $seal);
        if (count($parts) !== 3) {
            throw new UnexpectedValueException('not a compact JWS');
        }
        [$header, $claims] = [self::object($parts[0]), self::object($parts[1])];
        if (($header['alg'] ?? null) !== 'ES256' || ($header['typ'] ?? null) !== 'oz-seal+jwt' || isset($header['crit'])) {
            throw new UnexpectedValueException('not a seal: alg, typ or crit is another');
        }
        $signature = self::decode($parts[2]);
        if (strlen($signature) !== 64) {
            throw new UnexpectedValueException('not a signature by ES256');
        }
        $pair = ['r' => new BigInteger(substr($signature, 0, 32), 256), 's' => new BigInteger(substr($signature, 32), 256)];
        $key = EC::loadFormat('JWK', json_encode($this->key($header['kid'] ?? null)));
        if (!$key->withHash('sha256')->withSignatureFormat('Raw')->verify("$parts[0].$parts[1]", $pair)) {
            throw new UnexpectedValueException('the signature is wrong');
        }
        $this->check($claims);
        return $claims;
    }

    private function check(array $claims): void
    {
        $failures = array_keys(array_filter([
            'expired' => !is_int($claims['exp'] ?? null) || $claims['exp'] <= time() - self::LEEWAY,
            'issued in the future' => !is_int($claims['iat'] ?? null) || $claims['iat'] > time() + self::LEEWAY,
            'another audience' => ($claims['aud'] ?? null) !== $this->audience,
            'another issuer' => ($claims['iss'] ?? null) !== 'oz_instant',
            'no decision' => !is_string($claims['decision'] ?? null),
        ]));
        if ($failures) {
            throw new UnexpectedValueException(implode(', ', $failures));
        }
    }

    /** Returns the key with that kid, and fetches the keys anew if it isn't among them: so the site can take a new one. */
    private function key(mixed $kid): array
    {
        if (!is_string($kid)) {
            throw new UnexpectedValueException('unknown kid');
        }
        $keys = apcu_fetch($this->jwks) ?: [];
        // apcu_add succeeds once in each cool-down: anyone can make kids up, and they mustn't cause a fetch each.
        if (!isset($keys[$kid]) && apcu_add("tried $this->jwks", true, $this->coolDown)) {
            $keys = $this->fetch();
            apcu_store($this->jwks, $keys, $this->maxAge);
        }
        return $keys[$kid] ?? throw new UnexpectedValueException('unknown kid');
    }

    private function fetch(): array
    {
        $context = stream_context_create(['http' => ['timeout' => 5, 'follow_location' => 0]]);
        $text = @file_get_contents($this->jwks, false, $context, 0, 256 << 10);
        $set = $text === false ? null : json_decode($text, true);
        if (!is_array($set['keys'] ?? null)) {
            throw new UnexpectedValueException('fetching the keys failed');
        }
        $fit = fn ($key) => ($key['kty'] ?? null) === 'EC' && ($key['crv'] ?? null) === 'P-256' && is_string($key['kid'] ?? null);
        return array_column(array_filter($set['keys'], $fit), null, 'kid');
    }

    private static function object(string $part): array
    {
        $object = json_decode(self::decode($part), true);
        return is_array($object) ? $object : throw new UnexpectedValueException('not a compact JWS');
    }

    private static function decode(string $part): string
    {
        $bytes = base64_decode(strtr($part, '-_', '+/'), true);
        return $bytes === false ? throw new UnexpectedValueException('not a compact JWS') : $bytes;
    }
}

if (realpath($_SERVER['SCRIPT_FILENAME']) !== __FILE__) { // required, and not run
    return;
}
[, $jwks, $audience, $file] = $argv;
$seconds = array_map(intval(...), array_slice($argv, 4));
$verifier = new SealVerifier($jwks, $audience, ...$seconds);
$folder = in_array($file, ['', '-'], true) ? null : file_get_contents($file);
$status = 0;
while (($line = fgets(STDIN)) !== false) {
    try {
        $seal = rtrim($line, "\n");
        $claims = $file === '-' ? $verifier->verifyWithoutFolder($seal) : $verifier->verify($seal, $folder);
        echo "ok {$claims['decision']}\n";
    } catch (UnexpectedValueException $e) {
        $status = 1;
        echo 'no: ', strtr($e->getMessage(), "\n", ' '), "\n";
    }
}
exit($status);

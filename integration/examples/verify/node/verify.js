// Shows how an app in Node.js verifies seals: copy verifier. It needs jose (npm install jose).
//
//   node verify.js <jwks URL> <audience> <folder file or ""> [cool-down and life of keys, in seconds] < seals
//
// It reads a seal from each line and prints "ok <decision>" or why not; the exit code is 1 if one doesn't hold.
import {createHash} from 'node:crypto';
import {readFileSync} from 'node:fs';
import {createInterface} from 'node:readline';
import {createRemoteJWKSet, jwtVerify} from 'jose';

/**
 * verifier returns a function that gives the claims of a seal that holds, and throws otherwise. Make one, and keep it: it keeps the
 * keys, for cacheMaxAge, and fetches them anew for an unknown kid, but not more often than each cooldownDuration: anyone can make
 * kids up.
 */
function verifier(jwks, audience, coolDown = 30, maxAge = 600) {
  const keys = createRemoteJWKSet(new URL(jwks), {
    cooldownDuration: coolDown * 1000, cacheMaxAge: maxAge * 1000, timeoutDuration: 5000,
  });
  // folder is the folder document as the app received it, byte for byte; leave it out if the app doesn't read it.
  return async (seal, folder) => {
    const {payload} = await jwtVerify(seal, keys, {
      algorithms: ['ES256'], // never what the seal itself names
      typ: 'oz-seal+jwt', audience, issuer: 'oz_instant', clockTolerance: 30,
      requiredClaims: ['exp', 'iat', 'decision'],
    });
    // jose looks at iat only where maxTokenAge is set.
    if (payload.iat > Date.now() / 1000 + 30) throw new Error('issued in the future');
    if (folder && createHash('sha256').update(folder).digest('hex') !== payload.folder_sha256) {
      throw new Error('the folder is not the one that was sealed');
    }
    return payload;
  };
}

const [jwks, audience, file, ...seconds] = process.argv.slice(2);
const verify = verifier(jwks, audience, ...seconds.map(Number));
const folder = file && readFileSync(file);
process.exitCode = 0;
for await (const seal of createInterface({input: process.stdin})) {
  try {
    console.log('ok', (await verify(seal, folder || undefined)).decision);
  } catch (error) {
    process.exitCode = 1;
    console.log('no:', String(error.message).replaceAll('\n', ' '));
  }
}

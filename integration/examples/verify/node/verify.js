// Shows how an app in Node.js verifies seals: copy SealVerifier, or import it. It needs jose (npm install jose).
//
//   node verify.js <jwks URL> <audience> <folder file, or - for none> [cool-down and life of keys, in seconds] < seals
//
// It reads a seal from each line and prints "ok <decision>" or why not; the exit code is 1 if one doesn't hold.
import {createHash} from 'node:crypto';
import {readFileSync, realpathSync} from 'node:fs';
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import {importJWK, jwtVerify} from 'jose';

/**
 * Verifies the seals of one site. Make one, and keep it: it keeps the keys, for maxAge, so that one that the site takes back isn't
 * trusted for ever.
 *
 * Not by jose's createRemoteJWKSet: that fetches the keys for each seal as long as they can't be fetched.
 */
export class SealVerifier {
  #keys = new Map();
  #fetching;
  #fetched = -Infinity; // when the keys came
  #tried = -Infinity; // when they were asked for, whatever came of it

  constructor(jwks, audience, coolDown = 30, maxAge = 600) {
    Object.assign(this, {jwks, audience, coolDown, maxAge});
  }

  /**
   * Returns the claims of a seal that holds, and throws otherwise. folder is the folder document as the app received it, byte for
   * byte. Without one nothing holds: a genuine seal may come with a forged folder.
   */
  async verify(seal, folder) {
    const claims = await this.verifyWithoutFolder(seal);
    if (!folder?.length || createHash('sha256').update(folder).digest('hex') !== claims.folder_sha256) {
      throw new Error('the folder is not the one that was sealed');
    }
    return claims;
  }

  /** Is for an app that doesn't read the folder, which may be forged. */
  async verifyWithoutFolder(seal) {
    const {payload} = await jwtVerify(seal, ({kid}) => this.#key(kid), {
      algorithms: ['ES256'], // never what the seal itself names
      typ: 'oz-seal+jwt', audience: this.audience, issuer: 'oz_instant', clockTolerance: 30,
      requiredClaims: ['exp', 'iat', 'decision'],
    });
    // jose looks at iat only where maxTokenAge is set.
    if (payload.iat > Date.now() / 1000 + 30) throw new Error('issued in the future');
    return payload;
  }

  /** Returns the key with that kid, and fetches the keys anew if it isn't among them: so the site can take a new one. */
  async #key(kid) {
    const now = performance.now() / 1000;
    if (now - this.#fetched >= this.maxAge) this.#keys = new Map();
    // Unknown kids, which anyone can make up, mustn't cause more fetches than one in each cool-down.
    if (!this.#keys.has(kid) && now - this.#tried >= this.coolDown) {
      this.#tried = now;
      this.#fetching = this.#fetch(now);
    }
    if (!this.#keys.has(kid)) await this.#fetching;
    if (!this.#keys.has(kid)) throw new Error('unknown kid');
    return this.#keys.get(kid);
  }

  async #fetch(now) {
    // No redirects: only the site itself may say what its keys are.
    const answer = await fetch(this.jwks, {redirect: 'error', signal: AbortSignal.timeout(5000)});
    if (!answer.ok) throw new Error(`fetching the keys: ${answer.status}`);
    const fit = (await answer.json()).keys.filter((key) => key.crv === 'P-256' && typeof key.kid === 'string');
    this.#keys = new Map(await Promise.all(fit.map(async (key) => [key.kid, await importJWK(key, 'ES256')])));
    this.#fetched = now;
  }
}

if (realpathSync(process.argv[1] ?? '.') === fileURLToPath(import.meta.url)) { // run, and not imported
  const [jwks, audience, file, ...seconds] = process.argv.slice(2);
  const verifier = new SealVerifier(jwks, audience, ...seconds.map(Number));
  const folder = file === '-' ? '' : file && readFileSync(file);
  process.exitCode = 0;
  for await (const seal of createInterface({input: process.stdin})) {
    try {
      const claims = await (file === '-' ? verifier.verifyWithoutFolder(seal) : verifier.verify(seal, folder));
      console.log('ok', claims.decision);
    } catch (error) {
      process.exitCode = 1;
      console.log('no:', String(error.message).replaceAll('\n', ' '));
    }
  }
}

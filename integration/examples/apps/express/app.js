// An app on Express that acts on each decision, and believes nothing but the seal. It needs verify.js, too: copy it, and
// npm install express jose.
//
//   OZ_JWKS=https://app.example.com/.well-known/oz-instant/jwks.json OZ_AUDIENCE=https://app.example.com node app.js
import express from 'express';
import {realpathSync} from 'node:fs';
import {fileURLToPath} from 'node:url';
import {SealVerifier} from '../../verify/node/verify.js';

const seals = new SealVerifier(process.env.OZ_JWKS, process.env.OZ_AUDIENCE);
const answers = new Map(Object.entries({
  SUCCESS: [200, 'welcome'],
  DECLINED: [403, 'declined'],
  OPERATOR_REQUIRED: [202, 'wait until a person has looked at it'],
  FAILED: [503, 'could not be checked: capture anew, later'],
  INVALID: [400, 'does not count: capture anew'],
  UNAVAILABLE: [503, 'not decided: capture anew, later'],
}));

export const app = express();

app.post('/verify', express.raw({type: () => true, limit: '1mb'}), async (req, res) => {
  const claims = await seals.verify(req.get('X-Oz-Seal') ?? '', req.body).catch(() => ({}));
  const user = signedInUser(req);
  const own = user && claims.sub === user;
  const [status, message] = (own && answers.get(claims.decision)) || [403, 'not verified'];
  res.status(status).json({message, reason: claims.reason});
});

// Instead of your own sign-in: never believe a plain cookie.
const signedInUser = req => /(?:^|; )user=(\w+)/.exec(req.get('Cookie') ?? '')?.[1];

if (realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) app.listen(3000, '127.0.0.1');

// Gets session tokens and sends capsules of the Oz Web SDK to a site with oz_instant. The rules are those of docs/clients.md.

const tries = 4; // of one capsule, or of one session token
const captures = 3; // before the user is told to come back later
const longest = 60; // seconds between two tries
const patience = 300; // seconds for a capsule and its answer: more than the gateway gives them

// The gateway says of these that Oz has not used the capsule.
const mayComeAgain = ['overloaded', 'upload-timeout', 'unreadable-capsule'];

/**
 * Captures and sends until the app has answered, or nothing helps any more. It resolves to {next, status, said}: next is done where
 * the app has answered, later where another capture may help in some minutes, never where the page or the site must be mended, and
 * anew where several captures were refused. said is the answer's JSON.
 */
export async function verify(capture, options = {}) {
  for (let captured = 1; ; captured++) {
    const {token, ...answer} = await sessionToken(options);
    if (!token) return {...answer, next: 'later'};
    const outcome = await send(await capture(token), options);
    if (outcome.next !== 'anew' || captured === captures) return outcome;
  }
}

/** Sends a capsule, and sends it again only where the gateway says that it may come again. */
export function send(capsule, {url = '/verify', post = upload, onProgress, sleep} = {}) {
  return repeat(() => post(url, capsule, onProgress), judge, sleep);
}

/** Says what may happen next: done, again, anew, later or never. No answer at all has status 0. */
export function judge({status, said, retryAfter}) {
  const problem = /^urn:oz-instant:problem:(.+)$/.exec(said?.type)?.[1];
  if (!problem) return status > 0 && status < 500 && status !== 429 ? 'done' : 'later'; // not the gateway's: it may have been used
  if (mayComeAgain.includes(problem) && (status !== 503 || retryAfter > 0)) return 'again';
  if ([400, 403, 409].includes(status)) return 'anew';
  return [405, 413, 415, 431].includes(status) ? 'never' : 'later';
}

async function repeat(ask, judge, sleep = seconds => new Promise(wake => setTimeout(wake, seconds * 1000))) {
  for (let tried = 1; ; tried++) {
    const answer = await ask();
    const next = judge(answer);
    if (next !== 'again') return {...answer, next};
    const pause = (answer.retryAfter || 2 ** (tried - 1)) * (1 + Math.random() / 2); // so that clients that were refused at once don't come at once
    if (tried === tries || pause > longest) return {...answer, next: 'later'};
    await sleep(pause);
  }
}

/** Gets a session token. A token that never arrived harms nobody, so asking again is always safe. */
export async function sessionToken({tokenURL = '/session_token', sleep} = {}) {
  const ask = async () => {
    const answer = await fetch(tokenURL, {cache: 'no-store'}).catch(() => null);
    const said = await answer?.json().catch(() => null);
    return {status: answer?.status ?? 0, said, retryAfter: seconds(answer?.headers.get('Retry-After'))};
  };
  const answer = await repeat(ask, ({retryAfter}) => retryAfter > 0 ? 'again' : 'done', sleep);
  return {...answer, token: answer.status === 200 ? answer.said?.session_token : undefined};
}

const seconds = text => /^\d+$/.test(text ?? '') ? Number(text) : 0;

/** Posts by XMLHttpRequest, which unlike fetch says how far the upload is: onProgress(share), from 0 to 1. */
export function upload(url, capsule, onProgress = () => {}) {
  return new Promise(resolve => {
    const request = new XMLHttpRequest();
    request.upload.onprogress = event => onProgress(event.loaded / event.total);
    request.onloadend = () => resolve({status: request.status, said: parse(request.responseText), retryAfter: seconds(request.getResponseHeader('Retry-After'))});
    request.open('POST', url);
    request.timeout = patience * 1000; // or a page waits for ever for a network that is gone
    request.setRequestHeader('Content-Type', 'application/octet-stream');
    request.send(capsule);
  });
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // an error page, or no answer
  }
}

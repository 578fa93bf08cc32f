// What the page asks of the server, each by one request to its own address.

// Failed is an error with words for a person. Kind is offline, network or page.
export class Failed extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

// ask is fetch with an error that says what happened.
async function ask(path, options) {
  try {
    return await fetch(path, {cache: 'no-store', ...options});
  } catch {
    throw lost('The server cannot be reached.');
  }
}

export function lost(message) {
  return navigator.onLine ? new Failed('network', message) : new Failed('offline', 'You are offline.');
}

// getToken asks the gateway for a session token. It asks Oz; the page does not.
export async function getToken(path) {
  const answer = await ask(path, {headers: {Accept: 'application/json'}});
  if (answer.status === 404) return ''; // no session_token in the gateway's configuration
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Failed('page', said.detail ? `${said.title}. ${said.detail}` : `The gateway gave no session token: ${answer.status}.`);
  return said.session_token;
}

// makeCapsule has the sandbox make a capsule around the clip. In real life the vendor's SDK makes it, in the browser.
export async function makeCapsule(clip, scene) {
  const form = new FormData();
  form.append('scene', JSON.stringify(scene));
  form.append('clip', clip);
  const answer = await ask('/demo/capsule', {method: 'POST', body: form});
  if (!answer.ok) throw new Failed('page', `No capsule could be made: ${await answer.text()}`);
  return answer.blob();
}

// upload posts a capsule to /verify. On is told how far it is: on.progress(sent, all), on.sent().
export function upload(capsule, on) {
  const request = new XMLHttpRequest();
  const answer = new Promise((resolve, reject) => {
    request.upload.onprogress = event => on.progress(event.loaded, capsule.size);
    request.upload.onload = () => on.sent();
    request.onload = () => resolve(read(request));
    request.onerror = () => reject(lost('The connection was lost.'));
    request.onabort = () => reject(new Failed('network', 'The connection was cut.'));
  });
  request.open('POST', '/verify');
  request.setRequestHeader('Content-Type', 'application/octet-stream');
  request.send(capsule);
  return {answer, abort: () => request.abort()};
}

function read(request) {
  let said = null;
  try {
    said = JSON.parse(request.responseText);
  } catch { /* an error page */ }
  return {status: request.status, text: request.responseText, said, retryAfter: Number(request.getResponseHeader('Retry-After'))};
}

// startFlood has the server post count capsules at once. It returns false where another flood is in progress.
export async function startFlood(count) {
  const answer = await ask('/demo/flood', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({count})});
  if (!answer.ok && answer.status !== 409) throw new Failed('page', await answer.text());
  return answer.ok;
}

export async function floodNumbers() {
  const answer = await ask('/demo/flood');
  if (!answer.ok) throw new Failed('page', `The flood is out of sight: the site answered ${answer.status}.`);
  return answer.json();
}

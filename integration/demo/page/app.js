// The page of the demo app: what a click does, from the session token to the decision.
//
// What tests rely on:
//
//   #go                      starts the default case; each button [data-outcome=NAME] starts a case of its own: SUCCESS (#go),
//                            DECLINED, OPERATOR_REQUIRED, FAILED, and the names in cases below. All are disabled while one runs.
//   #user #camera            who is signed in, and whose face is shown: selects inside <details id="faces">
//   #source-camera #source-drawing   radios: what is recorded;  #draw: shown while the browser asks for the camera
//   #phase                   role=status; one sentence for each phase
//   #upload #progress #progress-text #lose   shown from the first byte until the answer; #lose cuts the connection
//   #result                  hidden until there is something to say. data-decision: the decision, or "". data-problem: the last
//                            word of a problem's type, or "network", "offline", "page", or "". data-status: the status, or 0.
//                            data-tries: how often this capsule was posted.
//   #verdict                 h3, gets the focus; class good, bad or wait; "SUCCESS: welcome", a problem's title, or what failed
//   #meaning #advice         what that means, and what to do; #advice counts down while #stop is shown
//   #again #anew #stop       "Send the same capsule again", "Capture anew", "Do not wait": shown where they make sense
//   #steps > li[data-phase]  token, capture, capsule, upload, wait, decision, once for each time it was gone through;
//                            data-ms: its duration
//   #received #cut #headers #problem   the two tables have a row for each field: th is its name, td its value
//   #answer                  the whole answer as text, JSON of the app or the problem document, inside <details id="whole">
//   body[data-state]         ready; while a case runs the phase, flood or waiting (counting down); then decided (there was an
//                            answer) or failed, and every button can be clicked again
//   #live[data-state]        on, paused, unreachable or off; #pause (aria-pressed), #live-note
//   #ways > .way-to-oz      one for each way to Oz; in it [data-fact=NAME]: slots, queue, wait, service, memory, token,
//                            upstreams, decision-SUCCESS … decision-UNAVAILABLE, failures
//   [data-flood=N]           floods with N capsules; #flood-served, -sending, -waiting, -refused, -failed; #flood-note
//   #way > li[data-at].here  where the capsule is: page, gateway, oz, app

import {record} from './capture.js';
import {getToken, makeCapsule, upload, startFlood, floodNumbers} from './send.js';
import {watch, follow} from './live.js';
import {judge} from './advice.js';
import * as show from './show.js';

const byId = id => document.getElementById(id);

// Each case is a scene for the maker of capsules, and what the page does besides.
const cases = {
  SUCCESS: {outcome: 'SUCCESS'},
  DECLINED: {outcome: 'DECLINED'},
  OPERATOR_REQUIRED: {outcome: 'OPERATOR_REQUIRED'},
  FAILED: {outcome: 'FAILED'},

  damaged: {outcome: 'damaged'},
  expired: {outcome: 'expired'},
  garbled: {outcome: 'garbled'},
  empty: {outcome: 'empty'},
  replayed: {outcome: 'SUCCESS', twice: true},
  binding: {outcome: 'SUCCESS', transaction: 'of-somebody-else'},

  'oz-error': {outcome: 'SUCCESS', fault: 'status:500'},
  'oz-garbage': {outcome: 'SUCCESS', fault: 'html:201'},
  'oz-cut': {outcome: 'SUCCESS', fault: 'cut'},
  'oz-lying': {outcome: 'SUCCESS', fault: 'dup-declined-success'},
  'oz-lost': {outcome: 'SUCCESS', fault: 'reset'},
  'oz-busy': {outcome: 'SUCCESS', fault: 'status:503,retry-after=3'},
  'oz-slow': {outcome: 'SUCCESS', fault: 'drip:100ms,bytes=8KiB'},
  'oz-silent': {outcome: 'SUCCESS', fault: 'hang'},

  lost: {outcome: 'SUCCESS', padding: 24 << 20, lose: true},
  overloaded: {outcome: 'SUCCESS', flood: 40},
};

const mostTries = 6;
let capsule = null; // the last one, for #again
let lose = () => {}; // cuts the connection
let stopWaiting = () => {};

// run does one thing at a time. The buttons are disabled meanwhile.
async function run(work) {
  setDisabled(true);
  show.begin();
  let end = 'decided';
  try {
    await work();
  } catch (error) {
    end = 'failed';
    show.failure(error, capsule !== null);
  }
  setDisabled(false);
  show.state(end);
}

function setDisabled(disabled) {
  for (const button of document.querySelectorAll('[data-outcome]')) button.disabled = disabled;
}

// capture goes from nothing to a capsule.
async function capture(scene) {
  capsule = null;
  signIn();
  const token = await show.phase('token', 'Asking the gateway for a session token', async step => {
    const token = await getToken(document.body.dataset.sessionToken);
    step(token ? 'Got a session token from the gateway.' : 'The gateway gives no session tokens: the sandbox takes one itself.');
    return token;
  });
  const clip = await show.phase('capture', 'Recording', async step => {
    const {clip, words} = await record(byId('source-drawing').checked ? 'drawing' : 'camera');
    step(`${words} ${show.size(clip.size)}.`);
    return clip;
  });
  capsule = await show.phase('capsule', 'Making the capsule', async step => {
    const made = await makeCapsule(clip, {...scene, person: person(), session_token: token, transaction: scene.transaction ?? transaction});
    step(`Made a capsule of ${show.size(made.size)} around it, as the vendor’s SDK would.`);
    return made;
  });
}

// deliver posts the capsule until there is an answer that another try would not change, and returns the decision, if there is one.
async function deliver(scene) {
  for (let tries = 1; ; tries++) {
    const answer = await post(scene.lose && tries === 1);
    const meaning = judge(answer, tries);
    show.result(answer, meaning, tries);
    if (!meaning.waits) return meaning.decision;
    if (tries === mostTries || !await countDown(meaning.waits)) break;
  }
  show.stopped();
  return '';
}

async function post(losing) {
  const text = losing ? 'Uploading, and losing the connection' : 'Uploading the capsule';
  const answer = await show.upload(text, on => {
    const {answer, abort} = upload(capsule, on);
    lose = abort;
    if (losing) setTimeout(abort, 15); // amid 24 MiB
    return answer;
  });
  lose = () => {};
  return answer;
}

// countDown waits as Retry-After says, and reports false when told not to.
function countDown(seconds) {
  const until = performance.now() + seconds * 1000;
  return new Promise(resolve => {
    const end = again => {
      clearInterval(timer);
      show.waiting(null);
      resolve(again);
    };
    const tick = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      if (left <= 0) end(true);
      else show.waiting(left);
    };
    const timer = setInterval(tick, 200);
    stopWaiting = () => end(false);
    tick();
  });
}

// floodFirst fills the gateway, so that the capsule that is sent next is refused.
async function floodFirst(count) {
  await show.phase('flood', `Flooding the gateway with ${count} capsules`, async step => {
    const begun = await startFlood(count);
    follow();
    for (let i = 0; i < 40; i++) {
      if ((await floodNumbers()).refused > 0) break;
      await new Promise(resolve => setTimeout(resolve, 50));
    }
    step(begun ? `${count} other capsules came first.` : 'A flood was in progress already.');
  });
}

async function runCase(name) {
  const scene = cases[name];
  await capture(scene);
  if (scene.flood) await floodFirst(scene.flood);
  const decision = await deliver(scene);
  if (name === 'binding' && decision === 'SUCCESS') {
    show.advise('This gateway ties no capsule to a user. With "require meta_data.transaction_id {cookie.transaction}" in its Caddyfile, this one is INVALID.');
  }
  if (scene.flood && decision && byId('result').dataset.tries === '1') {
    show.advise('This gateway refused nothing: its Caddyfile has no "capacity", or room for all of them.');
  }
  if (scene.twice) {
    show.note('The same capsule, a second time.');
    await deliver({});
  }
}

// Somebody is signed in: in real life by a log-in, long before this page. The transaction ties the capsule to this browser,
// where the gateway has "require meta_data.transaction_id {cookie.transaction}".
const transaction = Array.from(crypto.getRandomValues(new Uint8Array(12)), n => n.toString(16).padStart(2, '0')).join('');

function signIn() {
  const user = byId('user').value;
  document.cookie = `user=${user}; Path=/; SameSite=Lax` + (user ? '' : '; Max-Age=0');
  document.cookie = `transaction=${transaction}; Path=/; SameSite=Lax`;
}

const person = () => byId('camera').value || byId('user').value;

// In the profile is what face matching compares with.
async function showPhoto() {
  if (!byId('faces').open) return;
  signIn();
  if (byId('user').value === '') return;
  const answer = await fetch('/profile/photo', {cache: 'no-store'});
  show.photo(answer.ok ? await answer.blob() : null);
}

for (const button of document.querySelectorAll('[data-outcome]')) {
  button.addEventListener('click', () => run(() => runCase(button.dataset.outcome)));
}
byId('again').addEventListener('click', () => run(() => deliver({})));
byId('anew').addEventListener('click', () => run(() => runCase('SUCCESS')));
byId('stop').addEventListener('click', () => stopWaiting());
byId('lose').addEventListener('click', () => lose());
byId('faces').addEventListener('toggle', showPhoto);
byId('user').addEventListener('change', showPhoto);
addEventListener('online', () => {
  if (byId('result').dataset.problem === 'offline') show.advise('You are online again: try once more.');
});
if (document.body.dataset.flood === undefined) document.querySelector('[data-outcome="overloaded"]').hidden = true;
watch();

// What people see of a case: phases, progress, result, and what the app received.

import {lost} from './send.js';

const byId = id => document.getElementById(id);
const hide = (id, hidden = true) => { byId(id).hidden = hidden; };

export const size = n => n < 1000 ? `${n} bytes` : n < 1e6 ? `${(n / 1000).toFixed(1)} KB` : `${(n / 1e6).toFixed(1)} MB`;
const duration = ms => ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;

let began = 0; // when the case began
let steps = []; // {from, to, bar}

// begin clears what the case before left.
export function begin() {
  began = performance.now();
  steps = [];
  byId('steps').replaceChildren();
  byId('phase').textContent = '';
  for (const id of ['result', 'received', 'timeline', 'again', 'anew', 'stop']) hide(id);
}

const places = {token: 'gateway', capture: 'page', capsule: 'page', flood: 'gateway', upload: 'gateway', wait: 'oz', decision: 'app'};

export const state = name => { document.body.dataset.state = name; };

// at lights up where the capsule is.
function at(place) {
  for (const node of byId('way').children) node.classList.toggle('here', node.dataset.at === place);
}

// phase runs work, says so, and adds a step with its duration. Work is given a function that takes the step's words.
export async function phase(name, text, work) {
  const from = performance.now();
  let words = text;
  byId('phase').textContent = `${text} …`;
  at(places[name]);
  state(name);
  try {
    return await work(said => { words = said; });
  } catch (error) {
    words = `${text}: failed.`;
    throw error;
  } finally {
    step(name, words, from, performance.now());
  }
}

const titles = {
  token: 'Session token', capture: 'Capture', capsule: 'Capsule', flood: 'Flood', upload: 'Upload', wait: 'Gateway and Oz', decision: 'Decision',
};

function step(name, words, from, to) {
  const item = document.createElement('li');
  item.dataset.phase = name;
  item.dataset.ms = Math.round(to - from);
  const bar = make('i', '');
  item.append(make('b', titles[name]), ' ', make('time', name === 'decision' ? `${duration(to - began)} in all` : duration(to - from)), ' ', make('span', words));
  if (to > from) item.append(bar);
  byId('steps').append(item);
  hide('timeline', false);
  steps.push({from, to, bar});
  for (const {from, to, bar} of steps) { // all of them: the end has moved
    const all = performance.now() - began || 1;
    bar.style.setProperty('--from', `${100 * (from - began) / all}%`);
    bar.style.setProperty('--for', `${100 * (to - from) / all}%`);
  }
}

export function note(words) {
  const item = make('li', words);
  item.dataset.phase = 'note';
  byId('steps').append(item);
}

function make(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

// upload shows how far an upload is, then that it waits. Start is given what to call, and returns the answer.
export async function upload(text, start) {
  const from = performance.now();
  let sentAt = 0;
  progress(0, 1);
  byId('phase').textContent = `${text} …`;
  at('gateway');
  state('upload');
  hide('upload', false);
  const sent = () => {
    sentAt = performance.now();
    progress(1, 1);
    step('upload', 'The whole capsule is at the gateway.', from, sentAt);
    byId('phase').textContent = 'Waiting for the gateway and Oz …';
    at('oz');
    state('wait');
  };
  try {
    const answer = await start({progress, sent});
    if (!sentAt) step('upload', 'The gateway answered before it had read more.', from, performance.now());
    else step('wait', `POST /verify answered ${answer.status}, ${size(answer.text.length)}.`, sentAt, performance.now());
    return answer;
  } catch (error) {
    if (sentAt) step('wait', 'No answer: the connection is gone.', sentAt, performance.now());
    else step('upload', 'The connection was lost in mid-upload.', from, performance.now());
    error.arrived = sentAt > 0;
    throw error;
  } finally {
    hide('upload');
  }
}

function progress(sent, all) {
  const percent = Math.round(100 * sent / (all || 1));
  byId('progress').value = percent;
  byId('progress-text').textContent = all > 1 ? `${percent} %, ${size(sent)} of ${size(all)}` : `${percent} %`;
}

// result shows an answer and what it means.
export function result(answer, meaning, tries) {
  step('decision', meaning.decision ? `The app reads X-Oz-Decision: ${meaning.decision}.` : 'The app was not asked: this is the gateway’s answer.', performance.now(), performance.now());
  at(meaning.decision ? 'app' : 'gateway');
  const data = {decision: meaning.decision, problem: meaning.problem, status: answer.status, tries};
  verdict(meaning.tone, meaning.title, meaning.meaning, meaning.advice, data);
  hide('again', meaning.next !== 'again' || meaning.waits > 0);
  hide('anew', meaning.next !== 'anew');
  received(answer);
}

// failure shows what ended without an answer.
export function failure(error, kept) {
  const kind = error.kind ?? 'page';
  const offline = kind === 'offline' || !navigator.onLine;
  const advice = offline ? 'Connect again, then try once more.' : kind === 'network' ? 'Try once more.' : '';
  const again = kept && kind !== 'page' && !error.arrived;
  const meaning = again ? 'The capsule did not arrive whole, so it does not count. It is still in the memory of this page and can be sent again.'
    : error.arrived ? 'The whole capsule had arrived. The gateway finishes what it began, so it may count by now.' : 'Nothing was decided.';
  at('page');
  verdict('wait', offline ? lost('').message : error.message, meaning, advice, {decision: '', problem: offline ? 'offline' : kind, status: 0, tries: 1});
  hide('again', !again);
  hide('anew', false);
  hide('received');
}

function verdict(tone, title, meaning, advice, data) {
  Object.assign(byId('result').dataset, data);
  byId('phase').textContent = '';
  byId('verdict').className = tone;
  byId('verdict').textContent = title;
  byId('meaning').textContent = meaning;
  byId('advice').textContent = advice;
  hide('result', false);
  byId('verdict').focus();
}

// waiting shows how many seconds are left until the same capsule is sent again; null: no more.
export function waiting(seconds) {
  hide('stop', seconds === null);
  state('waiting');
  if (seconds !== null) byId('advice').textContent = `The same capsule is sent again in ${seconds} s.`;
}

export const advise = words => { byId('advice').textContent = words; };

// stopped shows that no more tries follow.
export function stopped() {
  advise('Send the same capsule again when you like.');
  hide('again', false);
  byId('again').focus();
}

function received({text, said}) {
  hide('received', false);
  const problem = said?.type ? said : null;
  byId('received-title').textContent = problem ? 'What the gateway answered' : 'What the app received';
  fill('headers', said?.oz_headers ?? null);
  fill('problem', problem);
  cut(said);
  byId('answer').textContent = said ? JSON.stringify(said, null, 2) : text;
}

// fill puts names and values into a table, or hides it.
function fill(id, values) {
  const rows = Object.entries(values ?? {}).map(([name, value]) => {
    const row = document.createElement('tr');
    const head = make('th', name);
    head.scope = 'row';
    row.append(head, make('td', String(value)));
    return row;
  });
  byId(id).tBodies[0].replaceChildren(...rows);
  byId(id).hidden = rows.length === 0;
}

// cut compares what Oz sent with what the app got. Only a sandbox can say the former, so without one there is no comparison.
function cut(said) {
  const oz = said?.oz_answer_bytes;
  const app = said?.content_length;
  hide('cut', !oz || app < 0);
  if (!oz) return;
  const sizes = `Oz’s answer to the capsule had ${size(oz)}, the app got ${size(app)}`;
  const attached = said.content_type.startsWith('multipart/');
  byId('cut-text').textContent = attached ? `${sizes}: the folder, and the best shot as a file beside it.`
    : app < oz ? `${sizes}: the best shot was cut out while the answer passed.` : `${sizes}: nothing was cut.`;
  byId('cut-app').style.setProperty('--for', `${Math.max(0.5, 100 * Math.min(app, oz) / oz)}%`);
}

let photoURL = '';

// photo shows the profile photo that faces are matched with.
export function photo(blob) {
  URL.revokeObjectURL(photoURL);
  photoURL = blob ? URL.createObjectURL(blob) : '';
  byId('photo').hidden = !blob;
  if (blob) byId('photo').src = photoURL;
}

// The gateway, live: what Caddy's admin API says about it, asked once a second, and how a flood fares.

import {startFlood, floodNumbers} from './send.js';

const byId = id => document.getElementById(id);
const live = byId('live');
const second = 1000;
let paused = false;

// watch asks for the status for as long as the page is in sight.
export function watch() {
  byId('flood').disabled = document.body.dataset.flood === undefined;
  for (const button of document.querySelectorAll('button[data-flood]')) button.addEventListener('click', () => flood(Number(button.dataset.flood)));
  if (document.body.dataset.live === undefined) return;
  byId('pause').hidden = false;
  byId('pause').addEventListener('click', () => {
    paused = !paused;
    byId('pause').setAttribute('aria-pressed', paused);
    if (paused) state('paused', 'Paused.');
  });
  poll();
}

async function poll() {
  let next = second;
  if (!paused && document.visibilityState === 'visible') next = await look() ? second : 5 * second;
  if (paused) state('paused', 'Paused.'); // also where an answer came later than the click
  setTimeout(poll, next);
}

// look reports whether there was a status to show.
async function look() {
  let said;
  if (!navigator.onLine) {
    state('unreachable', 'No status: you are offline.');
    return true;
  }
  try {
    const answer = await fetch('/demo/status', {cache: 'no-store'});
    said = await answer.json();
    if (said.error) throw new Error(said.error);
    showWays(said.ways);
  } catch (error) {
    state('unreachable', `No status: ${error.message}.`);
    return false;
  }
  state('on', said.ready ? 'Ready. Asked once a second.' : 'Not ready.');
  return true;
}

function state(name, note) {
  live.dataset.state = name;
  write(byId('live-note'), note);
}

// write changes a node only where it must: a screen reader and a selection stay where they are.
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const words = ['SUCCESS', 'DECLINED', 'OPERATOR_REQUIRED', 'FAILED', 'INVALID', 'UNAVAILABLE'];
const rows = [
  ['slots', 'Analyses in progress'], ['queue', 'Waiting in the queue'], ['wait', 'Estimated wait'], ['service', 'Time of an analysis'],
  ['memory', 'Capsules in memory'], ['token', 'Access token'], ['upstreams', 'Oz itself'], ['failures', 'Last failures'],
];
const withBar = new Set(['slots', 'queue', 'memory']);

function showWays(ways) {
  const box = byId('ways');
  while (box.children.length > ways.length) box.lastChild.remove();
  while (box.children.length < ways.length) box.append(newWay());
  ways.forEach((way, i) => showWay(box.children[i], way));
}

function newWay() {
  const section = document.createElement('section');
  section.className = 'way-to-oz';
  const decisions = newTable('Decisions since the start', words.map(word => [`decision-${word}`, word]));
  decisions.className = 'decisions';
  section.append(newTable('The way to Oz', rows), decisions);
  return section;
}

function newTable(title, rows) {
  const table = document.createElement('table');
  table.createCaption().textContent = title;
  const body = table.createTBody();
  for (const [fact, name] of rows) {
    const row = body.insertRow();
    const head = document.createElement('th');
    head.scope = 'row';
    head.textContent = name;
    row.append(head);
    const cell = row.insertCell();
    const text = document.createElement('span');
    text.dataset.fact = fact;
    cell.append(text);
    if (!withBar.has(fact) && !fact.startsWith('decision-')) continue;
    const bar = document.createElement('i');
    bar.className = 'bar';
    cell.append(bar);
  }
  return table;
}

function showWay(section, way) {
  const fact = (name, text, share) => {
    const node = section.querySelector(`[data-fact="${name}"]`);
    write(node, text);
    if (share !== undefined) node.nextSibling.style.setProperty('--for', `${100 * Math.min(1, share)}%`);
  };
  const of = (n, limit, format = String) => limit ? `${format(n)} of ${format(limit)}` : `${format(n)}, no limit`;
  const share = (n, limit) => limit ? n / limit : 0;
  fact('slots', of(way.in_flight, way.slots), share(way.in_flight, way.slots));
  fact('queue', way.slots ? `${way.queued} of ${way.queue}` : `${way.queued}`, share(way.queued, way.queue));
  const uploading = way.uploading ? `, ${way.uploading} being uploaded` : '';
  fact('memory', of(way.held_bytes, way.memory_bytes, megabytes) + uploading, share(way.held_bytes, way.memory_bytes));
  fact('wait', way.wait_seconds ? `${way.wait_seconds.toFixed(1)} s` : 'none');
  fact('service', way.service_seconds ? `${way.service_seconds.toFixed(2)} s` : 'not measured yet');
  fact('token', token(way.access_token));
  fact('upstreams', upstreams(way));
  fact('failures', way.last_failures.map(f => `${f.reason} ×${f.count}, last at ${new Date(f.time).toLocaleTimeString()}`).join('; ') || 'none');
  const most = Math.max(1, ...words.map(word => way.decisions[word] ?? 0));
  for (const word of words) fact(`decision-${word}`, String(way.decisions[word] ?? 0), (way.decisions[word] ?? 0) / most);
}

const megabytes = n => `${(n / 1048576).toFixed(1)} MiB`;

const token = t => !t ? 'none needed' : t.state === 'valid' && t.expires_in_seconds !== undefined ? `valid for ${Math.round(t.expires_in_seconds)} s` : t.state;

function upstreams(way) {
  const all = way.upstreams.map(u => `${u.address} ${u.healthy ? 'healthy' : 'down'}, ${u.requests} in progress, ${u.fails} failures`);
  if (way.dynamic_upstreams) all.push(`from ${way.dynamic_upstreams}`);
  return all.join('; ');
}

async function flood(count) {
  try {
    const begun = await startFlood(count);
    write(byId('flood-note'), begun ? `${count} capsules were sent at once.` : 'A flood is in progress already. This is how it fares.');
    await follow();
  } catch (error) {
    write(byId('flood-note'), error.message);
  }
}

let following = false;

// follow shows a flood until it ends, or cannot be asked any more.
export async function follow() {
  if (following) return;
  following = true;
  byId('flood').disabled = true;
  byId('flood-numbers').hidden = false;
  try {
    for (;;) {
      const now = await floodNumbers();
      for (const name of ['served', 'sending', 'waiting', 'refused', 'failed']) write(byId(`flood-${name}`), String(now[name]));
      if (!now.running) {
        write(byId('flood-note'), `The flood is over: ${now.served} of ${now.count} capsules were served in ${now.seconds.toFixed(1)} s.`);
        return;
      }
      await new Promise(resolve => setTimeout(resolve, second / 2));
    }
  } catch (error) {
    write(byId('flood-note'), error.message);
  } finally {
    following = false;
    byId('flood').disabled = false;
  }
}

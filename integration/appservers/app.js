// An app on Node's own server that says what it sees of a request: see harness_appservers_test.go.
'use strict';
const folded = name => name.toLowerCase().replace(/[^a-z0-9]/g, '-');
const member = (value, name) => value !== null && typeof value === 'object' && Object.hasOwn(value, name) ? value[name] : null;

function facts(document) {
  const analyses = member(document, 'analyses');
  const quality = (Array.isArray(analyses) ? analyses : []).filter(a => member(a, 'type') === 'QUALITY');
  return {
    system_resolution: member(document, 'system_resolution'),
    resolution_status: member(document, 'resolution_status'),
    folder_id: member(document, 'folder_id'),
    event_session_id: member(member(document, 'meta_data'), 'event_session_id'),
    quality: quality.length === 1 ? member(quality[0], 'resolution_status') : null,
  };
}

let example; // if its libraries are installed
const server = require('node:http').createServer((request, response) => {
  if (example && request.url.startsWith('/example/')) {
    request.url = '/verify';
    example(request, response);
    return;
  }
  const pieces = [];
  request.on('data', piece => pieces.push(piece));
  request.on('end', () => {
    let document = null, failure = null;
    try { document = JSON.parse(Buffer.concat(pieces).toString()); } catch (error) { failure = String(error); }
    const fields = [];
    for (let i = 0; i < request.rawHeaders.length; i += 2) fields.push([folded(request.rawHeaders[i]), request.rawHeaders[i + 1]]);
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify({server: 'node', decision: request.headers['x-oz-decision'] ?? null, fields, document: facts(document), failure}));
  });
});

server.keepAliveTimeout = 0; // else a connection that was idle for five seconds is closed just when a capsule comes on it

import('../examples/apps/express/app.js').then(({app}) => { example = app; }, () => {}).finally(() => server.listen(Number(process.argv[2]), '127.0.0.1'));

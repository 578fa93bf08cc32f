// An Express server that streams a capsule to Oz, decides, and hands the folder without its best shot on to the app. One process.
// Express has no HTTP/2.
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import {pipeline} from 'node:stream/promises';

import express from 'express';
import {Pool} from 'undici';

const {OZ, APP, SITE, CERT, KEY} = process.env;
const oz = new Pool(`http://${OZ}`), app = new Pool(`http://${APP}`);
const site = express();
site.disable('x-powered-by');

site.post('/verify', async (req, res) => {
  const client = req.ip; // not there any more when the capsule has been read
  const headers = {'Content-Type': 'application/octet-stream'};
  if (req.headers['content-length']) headers['Content-Length'] = req.headers['content-length'];
  // reset: no connection to Oz is kept, as this module and the other peers have it.
  const answer = await oz.request({method: 'POST', path: '/api/instant/folders/', headers, body: req, reset: true});
  if (answer.statusCode !== 201) {
    answer.body.resume();
    throw new Error(`oz answered with ${answer.statusCode}`);
  }
  const folder = await answer.body.json();
  const decision = decide(folder);
  dropBestShots(folder);
  const reply = await app.request({
    method: 'POST', path: req.originalUrl, body: JSON.stringify(folder),
    headers: {
      Host: req.headers.host, 'X-Forwarded-For': client, 'Content-Type': 'application/json',
      'X-Oz-Decision': decision, 'X-Oz-Folder-Id': folder.folder_id,
    },
  });
  res.status(reply.statusCode);
  for (const [name, value] of Object.entries(reply.headers)) {
    if (name !== 'connection' && name !== 'keep-alive' && name !== 'transfer-encoding') res.set(name, value);
  }
  await pipeline(reply.body, res);
});

site.use((err, req, res, next) => {
  console.error(err.message);
  if (res.headersSent) return next(err);
  res.status(502).end();
});

function decide(folder) {
  const resolution = folder.system_resolution;
  return folder.resolution_status === 'FINISHED' && (resolution === 'SUCCESS' || resolution === 'DECLINED') ? resolution : 'FAILED';
}

function dropBestShots(folder) {
  for (const analysis of folder.analyses ?? [])
    for (const media of analysis.results_media ?? [])
      for (const image of media.output_images ?? [])
        delete image.image_b64;
}

const server = SITE.startsWith('https:')
  ? https.createServer({cert: fs.readFileSync(CERT), key: fs.readFileSync(KEY)}, site)
  : http.createServer(site);
const {hostname, port} = new URL(SITE);
server.listen(port, hostname);
process.on('SIGTERM', () => process.exit(0));

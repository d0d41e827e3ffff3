// A Node server that takes whatever its parser can be talked into, and logs every request it parsed: node_server.js PORT LOG
'use strict';
const http = require('node:http');
const fs = require('node:fs');
const crypto = require('node:crypto');

const log = fs.openSync(process.argv[3], 'a');
const printable = (text) => text.replace(/[^\x21-\x7e]/g, '?');

function pathOf(target) {
  try {
    return decodeURIComponent(new URL(target, 'http://x').pathname);
  } catch {
    return null;
  }
}

function pairs(flat) {
  return flat.filter((_, at) => at % 2 === 0).map((name, at) => [name, flat[2 * at + 1]]);
}

function serve(request, response) {
  const hash = crypto.createHash('sha256');
  let length = 0;
  let told = false;
  const tell = (complete) => {
    if (told) return;
    told = true;
    fs.writeSync(log, JSON.stringify({
      method: request.method, target: request.url, path: pathOf(request.url),
      lines: pairs(request.rawHeaders), trailers: pairs(request.rawTrailers),
      length, hash: hash.digest('hex'), complete,
    }) + '\n');
  };
  request.on('data', (data) => { length += data.length; hash.update(data); });
  request.on('close', () => tell(false));
  request.on('end', () => {
    tell(true);
    response.setHeader('X-Saw-Probe', request.headers['x-probe'] === undefined ? '-' : printable(request.headers['x-probe']));
    response.setHeader('X-Saw', printable(request.method) + ' ' + printable(request.url));
    response.end('ok');
  });
}

const server = http.createServer({ insecureHTTPParser: true, requireHostHeader: false, maxHeaderSize: 1 << 20, keepAliveTimeout: 60000, joinDuplicateHeaders: true }, serve);
server.on('checkContinue', (request, response) => { response.writeContinue(); serve(request, response); });
server.on('checkExpectation', serve);
const broken = new WeakSet();
server.on('clientError', (error, socket) => {
  // The parser goes on with what stands behind a request that it could not read.
  if (broken.has(socket)) return;
  broken.add(socket);
  const raw = error.rawPacket ? error.rawPacket.toString('latin1').slice(0, 300) : '';
  // An empty packet is a connection that was reset.
  if (raw) fs.writeSync(log, JSON.stringify({ malformed: error.code, raw, complete: false }) + '\n');
  socket.end('HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
});
server.listen(Number(process.argv[2]), '127.0.0.1');

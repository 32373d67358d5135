// SPDX-License-Identifier: Apache-2.0
// Node's http and http2: `http2.js serve`, and `http2.js HOST CHECK`, which says `ok` and how many requests it sent.
"use strict";
const assert = require("node:assert");
const crypto = require("node:crypto");
const http = require("node:http");
const http2 = require("node:http2");
const net = require("node:net");
const { once } = require("node:events");

const HTTP = 9500;
const H2C = 9501;
const MIB = 1 << 20;
const { NGHTTP2_CANCEL, NGHTTP2_INTERNAL_ERROR, NGHTTP2_NO_ERROR, NGHTTP2_REFUSED_STREAM } = http2.constants;
const sha256 = (data) => crypto.createHash("sha256").update(data).digest("hex");
const block = crypto.createHash("shake128", { outputLength: MIB }).update("underground").digest();

const fieldsOf = (headers) => Object.fromEntries(Object.entries(headers));

let sent = 0;
const waiting = new Map();
// Something that one stream waits for and another sets off.
function signal(name) {
  if (!waiting.has(name)) {
    const one = {};
    one.set = new Promise((resolve) => (one.go = resolve));
    waiting.set(name, one);
  }
  return waiting.get(name);
}

// --- the servers ---

async function bytes(stream, size) {
  for (let left = size; left > 0; left -= MIB) {
    if (!stream.write(block.subarray(0, Math.min(left, MIB)))) await once(stream, "drain");
  }
  stream.end();
}

const paths = {
  seen(stream, headers) {
    stream.respond({ ":status": 200 });
    stream.end(JSON.stringify(headers));
  },
  bytes(stream, headers, size) {
    stream.respond({ ":status": 200, "content-length": size });
    return bytes(stream, Number(size));
  },
  async sum(stream) {
    const digest = crypto.createHash("sha256");
    let trailers = {};
    stream.on("trailers", (fields) => (trailers = fieldsOf(fields)));
    for await (const part of stream) digest.update(part);
    stream.respond({ ":status": 200 });
    stream.end(JSON.stringify({ sha256: digest.digest("hex"), trailers }));
  },
  trailers(stream) {
    stream.respond({ ":status": 200, trailer: "x-checksum" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "x-checksum": sha256(block), "x-after": "all" }));
    stream.end(block);
  },
  onlyTrailers(stream) {
    stream.respond({ ":status": 200, "x-only": "head" }, { endStream: true });
  },
  echo(stream) {
    stream.respond({ ":status": 200 });
    stream.pipe(stream);
  },
  async reset(stream, headers, code) {
    if (headers["x-answer"]) {
      // Without this, close() ends the answer before it resets the stream.
      stream.respond({ ":status": 200 }, { waitForTrailers: true });
      stream.write("half");
      await signal("half was read").set;
      waiting.delete("half was read");
    }
    stream.close(Number(code));
  },
  waitForReset(stream, headers, name) {
    stream.on("aborted", () => signal(name).go(`aborted ${stream.rstCode}`));
    stream.respond({ ":status": 200 });
    stream.write("begun");
  },
  set(stream, headers, name) {
    signal(decodeURIComponent(name)).go();
    stream.respond({ ":status": 204 }, { endStream: true });
  },
  async wait(stream, headers, name) {
    const said = await signal(name).set;
    stream.respond({ ":status": 200 });
    stream.end(String(said));
  },
  // As much as fits into the client's window, for ever.
  endless(stream) {
    stream.respond({ ":status": 200 });
    const more = () => {
      while (stream.write(block)) {}
      stream.once("drain", more);
    };
    more();
  },
  early(stream) {
    stream.additionalHeaders({ ":status": 103, link: "</style.css>; rel=preload" });
    stream.respond({ ":status": 200 });
    stream.end("late");
  },
};

function serve() {
  const server = http2.createServer({ settings: { maxConcurrentStreams: 250 } });
  server.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    const [, path, argument] = headers[":path"].split("/");
    Promise.resolve((paths[path] ?? paths.seen)(stream, headers, argument)).catch((error) => console.error(error));
  });
  server.listen(H2C, "0.0.0.0");
  const one = http.createServer((request, response) => {
    const digest = crypto.createHash("sha256");
    request.on("data", (part) => digest.update(part));
    request.on("end", () => {
      const said = JSON.stringify({ headers: request.headers, trailers: request.trailers, sha256: digest.digest("hex") });
      response.writeHead(200, { Trailer: "x-checksum", "Transfer-Encoding": "chunked" });
      response.write(said);
      response.addTrailers({ "x-checksum": sha256(said) });
      response.end();
    });
  });
  one.on("connect", (request, socket, head) => {
    socket.write("HTTP/1.1 200 OK\r\n\r\n");
    socket.write(head);
    socket.pipe(socket);
  });
  one.listen(HTTP, "0.0.0.0");
}

// --- the client ---

let host;
const connect = (options) => http2.connect(`http://${host}:${H2C}`, options);

function ask(session, path, headers = {}, options = {}) {
  sent++;
  return session.request({ ":path": path, ...headers }, options);
}

async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
}

async function get(session, path, headers) {
  const stream = ask(session, path, headers);
  const [answer] = await once(stream, "response");
  return [answer, await all(stream)];
}

async function closes(session) {
  session.close();
  await once(session, "close");
}

const checks = {
  async http1() {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 5 });
    const one = (i) =>
      new Promise((resolve, reject) => {
        sent++;
        const body = block.subarray(0, 1 + i * 997);
        // Without TE a proxy may leave trailers out (RFC 9110, 6.5.1), and hyper does.
        const headers = { Trailer: "x-own", TE: "trailers" };
        const request = http.request({ agent, host, port: HTTP, method: "POST", headers }, async (response) => {
          const said = await all(response);
          try {
            assert.strictEqual(response.trailers["x-checksum"], sha256(said));
            const { sha256: sum, trailers } = JSON.parse(said);
            assert.deepStrictEqual([sum, trailers], [sha256(body), { "x-own": String(i) }]);
            resolve();
          } catch (error) {
            reject(error);
          }
        });
        request.on("error", reject);
        request.write(body);
        request.addTrailers({ "x-own": String(i) });
        request.end();
      });
    await Promise.all(Array.from({ length: 100 }, (_, i) => one(i)));
    agent.destroy();
  },

  async tunnel() {
    sent++;
    const request = http.request({ host, port: HTTP, method: "CONNECT", path: "node.example:1" });
    request.end();
    const [response, socket] = await once(request, "connect");
    assert.strictEqual(response.statusCode, 200);
    socket.end(block);
    assert.strictEqual(sha256(await all(socket)), sha256(block));
  },

  async many() {
    const session = connect();
    await once(session, "connect");
    const answers = await Promise.all(Array.from({ length: 1000 }, (_, i) => get(session, `/seen/${i}`, { "x-number": String(i) })));
    answers.forEach(([head, body], i) => {
      assert.strictEqual(head[":status"], 200);
      const said = JSON.parse(body);
      assert.deepStrictEqual([said[":path"], said["x-number"], said[":method"], said[":scheme"]], [`/seen/${i}`, String(i), "GET", "http"]);
      assert.strictEqual(said[":authority"], `${host}:${H2C}`);
    });
    await closes(session);
  },

  async trailers() {
    const session = connect();
    const stream = ask(session, "/trailers", { te: "trailers" });
    let trailers;
    stream.on("trailers", (fields) => (trailers = fieldsOf(fields)));
    assert.strictEqual(sha256(await all(stream)), sha256(block));
    assert.deepStrictEqual(trailers, { "x-checksum": sha256(block), "x-after": "all" });
    const [head, body] = await get(session, "/onlyTrailers");
    assert.deepStrictEqual([head["x-only"], body.length], ["head", 0]);
    const upload = ask(session, "/sum", { ":method": "POST" }, { waitForTrailers: true });
    upload.on("wantTrailers", () => upload.sendTrailers({ "x-own": "mine" }));
    upload.end(block);
    assert.deepStrictEqual(JSON.parse(await all(upload)), { sha256: sha256(block), trailers: { "x-own": "mine" } });
    await closes(session);
  },

  // Each part is sent when the one before it has come back.
  async bothDirections() {
    const session = connect();
    const stream = ask(session, "/echo", { ":method": "POST" });
    await once(stream, "response");
    for (let i = 0; i < 200; i++) {
      stream.write(`part ${i}`);
      const [part] = await once(stream, "data");
      assert.strictEqual(String(part), `part ${i}`);
    }
    stream.end();
    await once(stream, "end");
    await closes(session);
  },

  async resets() {
    const session = connect();
    for (const code of [NGHTTP2_REFUSED_STREAM, NGHTTP2_INTERNAL_ERROR, NGHTTP2_CANCEL]) {
      const stream = ask(session, `/reset/${code}`, { "x-answer": "half" });
      const [part] = await once(stream, "data");
      assert.strictEqual(String(part), "half");
      // An error comes before it.
      const ended = new Promise((resolve) => stream.once("close", resolve));
      stream.on("error", () => {});
      stream.on("end", () => (stream.whole = !stream.aborted && stream.rstCode === NGHTTP2_NO_ERROR));
      await get(session, "/set/half%20was%20read");
      await ended;
      assert.ok(!stream.whole && stream.rstCode !== NGHTTP2_NO_ERROR, `the reset ${code} arrived as ${stream.rstCode}`);
    }
    // A stream that the client resets is reset at the server, and others go on.
    const name = `reset${process.hrtime.bigint()}`;
    const left = ask(session, `/waitForReset/${name}`);
    await once(left, "data");
    left.close(NGHTTP2_CANCEL);
    const [, said] = await get(session, `/wait/${name}`);
    assert.strictEqual(String(said), `aborted ${NGHTTP2_CANCEL}`);
    const destroyed = connect();
    const gone = ask(destroyed, `/waitForReset/${name}2`);
    await once(gone, "data");
    destroyed.on("error", () => {});
    gone.on("error", () => {});
    destroyed.destroy();
    const [, ended] = await get(session, `/wait/${name}2`);
    assert.match(String(ended), /^aborted/);
    await closes(session);
  },

  async large() {
    const session = connect();
    const [, body] = await get(session, `/bytes/${100 * MIB}`);
    const whole = crypto.createHash("sha256");
    for (let i = 0; i < 100; i++) whole.update(block);
    const sum = whole.digest("hex");
    assert.strictEqual(sha256(body), sum);
    const upload = ask(session, "/sum", { ":method": "PUT" });
    bytes(upload, 100 * MIB);
    assert.strictEqual(JSON.parse(await all(upload)).sha256, sum);
    await closes(session);
  },

  // Streams whose readers stop take their own windows and nobody's more.
  async slowStream() {
    const session = connect();
    const slow = Array.from({ length: 3 }, () => ask(session, "/endless"));
    await Promise.all(slow.map((stream) => once(stream, "response")));
    for (const stream of slow) stream.pause();
    for (let i = 0; i < 20; i++) {
      const [, body] = await get(session, `/bytes/${MIB}`);
      assert.strictEqual(sha256(body), sha256(block));
    }
    for (const stream of slow) stream.close(NGHTTP2_CANCEL);
    await closes(session);
  },

  // Says nothing for longer than a server that speaks first is waited for; the server's SETTINGS are there by then.
  async late() {
    const socket = net.connect({ host, port: H2C });
    await once(socket, "connect");
    await new Promise((resolve) => setTimeout(resolve, 300));
    const session = connect({ createConnection: () => socket });
    for (let i = 0; i < 3; i++) await get(session, `/seen/${i}`);
    await closes(session);
  },

  async early() {
    const session = connect();
    const stream = ask(session, "/early");
    const [answer] = await once(stream, "response");
    assert.strictEqual(answer[":status"], 200);
    assert.strictEqual(String(await all(stream)), "late");
    await closes(session);
  },
};

const [first, check] = process.argv.slice(2);
if (first === "serve") serve();
else {
  host = first;
  checks[check]().then(
    () => console.log("ok", sent),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
}

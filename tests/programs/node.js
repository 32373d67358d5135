// SPDX-License-Identifier: Apache-2.0
// Node's http and net: `node.js serve`, and `node.js http|net HOST COUNT`, which says `ok` and what it counted.
"use strict";
const crypto = require("node:crypto");
const http = require("node:http");
const net = require("node:net");

const HTTP = 9200;
const NET = 9201;
const sha256 = () => crypto.createHash("sha256");

// POST answers with the SHA-256 of the body, GET /N with N bytes and their SHA-256, an upgrade with what comes.
function serve() {
  const server = http.createServer((request, response) => {
    if (request.method === "GET") {
      const body = Buffer.alloc(Number(request.url.slice(1)), "underground ");
      response.setHeader("x-sha256", sha256().update(body).digest("hex"));
      response.end(body);
      return;
    }
    const digest = sha256();
    request.on("data", (chunk) => digest.update(chunk));
    request.on("end", () => {
      response.setHeader("x-encoding", request.headers["transfer-encoding"] ?? "none");
      response.end(digest.digest("hex"));
    });
  });
  server.on("upgrade", (request, socket, head) => {
    socket.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    socket.write(head);
    socket.pipe(socket);
  });
  server.listen(HTTP, "0.0.0.0");
  net.createServer((socket) => socket.pipe(socket)).listen(NET, "0.0.0.0");
}

function post(agent, host, size) {
  const body = crypto.randomBytes(size);
  return new Promise((resolve, reject) => {
    const request = http.request({ agent, host, port: HTTP, method: "POST" }, (response) => {
      let said = "";
      response.setEncoding("utf8");
      response.on("data", (chunk) => (said += chunk));
      response.on("end", () => {
        const expected = sha256().update(body).digest("hex");
        said === expected ? resolve() : reject(new Error(`the server read ${said}, not ${expected}`));
      });
    });
    request.on("error", reject);
    request.end(body);
  });
}

// Keep-alive: fewer connections than requests.
async function manyPosts(host, count) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 25 });
  let connections = 0;
  const connect = agent.createConnection;
  agent.createConnection = (...args) => (connections++, connect.apply(agent, args));
  await Promise.all(Array.from({ length: count }, (_, i) => post(agent, host, 1 + ((i * 7919) % 150000))));
  agent.destroy();
  console.log("ok", count, connections);
}

// Half-close: the client ends first, and the echo still comes whole.
function echo(host, size) {
  const body = crypto.randomBytes(size);
  return new Promise((resolve, reject) => {
    const socket = net.connect({ host, port: NET, allowHalfOpen: true });
    const chunks = [];
    socket.on("error", reject);
    socket.on("data", (chunk) => chunks.push(chunk));
    socket.on("end", () =>
      Buffer.concat(chunks).equals(body) ? resolve() : reject(new Error("the echo is not what was sent")));
    socket.end(body);
  });
}

async function manyEchoes(host, count) {
  await Promise.all(Array.from({ length: count }, (_, i) => echo(host, 1 + ((i * 104729) % 300000))));
  console.log("ok", count);
}

const [what, host, count] = process.argv.slice(2);
const done = { serve, http: manyPosts, net: manyEchoes }[what](host, Number(count));
Promise.resolve(done).catch((error) => {
  console.error(error);
  process.exit(1);
});

# SPDX-License-Identifier: Apache-2.0
"""A steady load on calls_server.py, by HTTP/1.1 on kept connections and by gRPC on one channel, until a line on stdin.

Usage: load.py HOST PER_SECOND. Says `begun`, and at the end what became of the requests of each kind, as JSON. No request is
tried again: what fails is counted.
"""
import asyncio
import json
import sys
from collections import Counter

import grpc

HOST, RATE = sys.argv[1], int(sys.argv[2])
CONNECTIONS = 8
PATIENCE = 10


class Kind:
    def __init__(self):
        self.failed, self.replicas, self.reconnects = Counter(), Counter(), 0

    def said(self):
        return {"ok": sum(self.replicas.values()), "failed": self.failed, "replicas": self.replicas, "reconnects": self.reconnects}

    async def count(self, request):
        try:
            async with asyncio.timeout(PATIENCE):
                self.replicas[await request] += 1
        except Exception as error:
            text = f"{error.code().name} {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else repr(error)
            self.failed[text[:200]] += 1


class Connection:
    """Kept, as long as the other end keeps it."""

    def __init__(self, kind):
        self.kind, self.reader, self.writer, self.lock = kind, None, None, asyncio.Lock()

    async def get(self):
        async with self.lock:
            if self.reader is None or self.reader.at_eof():
                self.kind.reconnects += self.reader is not None
                self.reader, self.writer = await asyncio.open_connection(HOST, 9701)
            try:
                return await self.exchange()
            except BaseException:
                self.writer.close()
                self.reader = None
                raise

    async def exchange(self):
        self.writer.write(b"GET / HTTP/1.1\r\nHost: calls.example\r\n\r\n")
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        if " 200 " not in status:
            raise ValueError(head)
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert await self.reader.readexactly(int(headers["content-length"])) == b"up\n"
        if headers.get("connection") == "close":
            self.writer.close()
            self.reader = None
        return headers["x-replica"]


async def every(begin, work):
    """Starts it at the rate, whatever became of what was started before."""
    tasks, number = set(), 0
    while not stopped.is_set():
        await asyncio.sleep(max(0, begin + number / RATE - asyncio.get_running_loop().time()))
        task = asyncio.create_task(work(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    await asyncio.gather(*tasks)


async def main():
    global stopped
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, lambda: (sys.stdin.readline(), stopped.set()))
    http, calls = Kind(), Kind()
    connections = [Connection(http) for _ in range(CONNECTIONS)]
    async with grpc.aio.insecure_channel(f"ipv4:{HOST}:9700", options=[("grpc.enable_retries", 0)]) as channel:
        method = channel.unary_unary("/underground.Calls/Unary")

        async def call():
            one = method(b"up", timeout=PATIENCE)
            await one
            return dict(await one.initial_metadata())["x-replica"]

        await asyncio.gather(http.count(connections[0].get()), calls.count(call()))
        print("begun", flush=True)
        begin = loop.time()
        await asyncio.gather(every(begin, lambda number: http.count(connections[number % CONNECTIONS].get())),
                             every(begin, lambda number: calls.count(call())))
    print(json.dumps({"http": http.said(), "grpc": calls.said()}))


asyncio.run(main())

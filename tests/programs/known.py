#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Requests whose statuses and times are known.

known.py serve PORT               answers /STATUS/MILLIS with that status after that time
known.py ask HOST PORT COUNTxSTATUS/MILLIS...   asks for each so many times, mixed, over 12 connections
"""

import asyncio
import random
import sys

CONNECTIONS = 12


async def answer(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            _, status, millis = head.split(b" ")[1].decode().split("/")
            await asyncio.sleep(int(millis) / 1000)
            writer.write(f"HTTP/1.1 {status} Known\r\nContent-Length: 3\r\n\r\nyes".encode())
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionResetError):
        pass
    finally:
        writer.close()


async def serve(port):
    server = await asyncio.start_server(answer, "0.0.0.0", port, backlog=128)
    await server.serve_forever()


async def ask(host, port, wanted):
    reader, writer = await asyncio.open_connection(host, port)
    while wanted:
        status, millis = wanted.pop()
        request = f"GET /{status}/{millis} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        got = head.split(b" ")[1].decode()
        assert got == status, f"asked for {status}, got {head!r}"
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
    writer.close()


async def ask_all(host, port, specs):
    wanted = []
    for spec in specs:
        count, what = spec.split("x")
        wanted += [tuple(what.split("/"))] * int(count)
    random.Random(4).shuffle(wanted)
    await asyncio.gather(*(ask(host, port, wanted) for _ in range(CONNECTIONS)))


if sys.argv[1] == "serve":
    asyncio.run(serve(int(sys.argv[2])))
else:
    asyncio.run(ask_all(sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
    print("ok")

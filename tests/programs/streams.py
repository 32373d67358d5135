# SPDX-License-Identifier: Apache-2.0
"""asyncio streams: a client sends a length and a body and gets the body's SHA-256 and the body back.

Usage: streams.py serve CERTIFICATE KEY | streams.py connect HOST CERTIFICATE COUNT [tls].
Each connection of the client goes on for a few rounds; with `tls` it is upgraded by start_tls in between.
"""
import asyncio
import hashlib
import random
import ssl
import sys

PORT = 9100
ROUNDS = 3
UPGRADE = b"!"


async def answer(reader, writer, context):
    while kind := await reader.read(1):
        if kind == UPGRADE:
            writer.write(kind)
            await writer.drain()
            await writer.start_tls(context)
            continue
        size = int.from_bytes(await reader.readexactly(4))
        body = await reader.readexactly(size)
        writer.write(hashlib.sha256(body).digest() + body)
        await writer.drain()
    writer.close()


async def serve(certificate, key):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(lambda r, w: answer(r, w, context), "0.0.0.0", PORT, backlog=1024)
    await server.serve_forever()


async def exchange(reader, writer, rng):
    body = rng.randbytes(rng.randrange(1, 200_000))
    writer.write(b"." + len(body).to_bytes(4) + body)
    digest = await reader.readexactly(32)
    assert digest == hashlib.sha256(body).digest(), "the server read something else"
    assert await reader.readexactly(len(body)) == body, "the server's answer came otherwise"


async def talk(host, context, seed):
    rng = random.Random(seed)
    reader, writer = await asyncio.open_connection(host, PORT)
    await exchange(reader, writer, rng)
    if context:
        writer.write(UPGRADE)
        assert await reader.readexactly(1) == UPGRADE
        await writer.start_tls(context, server_hostname="streams")
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    for _ in range(ROUNDS):
        await exchange(reader, writer, rng)
    writer.close()
    await writer.wait_closed()


async def connect(host, certificate, count, tls=None):
    context = ssl.create_default_context(cafile=certificate) if tls else None
    await asyncio.gather(*(talk(host, context, seed) for seed in range(int(count))))
    print("ok", count)


main = {"serve": serve, "connect": connect}[sys.argv[1]]
asyncio.run(main(*sys.argv[2:]))

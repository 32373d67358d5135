# SPDX-License-Identifier: Apache-2.0
"""PyPI's websockets: `websocket.py serve` on 9600, and `websocket.py HOST`, which says `ok` and how many connections it opened."""
import asyncio
import hashlib
import http
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

PORT = 9600
LARGE = 8 << 20
opened = 0
left = asyncio.Queue()


async def answer(connection):
    path = connection.request.path
    if path.startswith("/close/"):
        await connection.close(int(path.split("/")[2]), "as asked")
    elif path == "/drop":
        connection.transport.abort()
    elif path == "/who-left":
        await connection.send(str(await asyncio.wait_for(left.get(), 20)))
    elif path == "/ping":
        await (await connection.ping(b"are you there"))
        await connection.send("there")
    else:
        try:
            async for message in connection:
                await connection.send(message)
        except ConnectionClosed:
            pass
        if path == "/tracked":
            await left.put(connection.close_code)


def refuse(connection, request):
    if request.path == "/refused":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not you\n")


async def listen():
    async with serve(answer, "0.0.0.0", PORT, process_request=refuse, max_size=2 * LARGE, subprotocols=["echo"]) as server:
        await server.serve_forever()


def to(path):
    global opened
    opened += 1
    return connect(f"ws://{sys.argv[1]}:{PORT}{path}", max_size=2 * LARGE, proxy=None, subprotocols=["echo"])


async def closed(path):
    async with to(path) as connection:
        try:
            return await connection.recv()
        except ConnectionClosed as error:
            return (error.rcvd.code, error.rcvd.reason) if error.rcvd else None


async def echo():
    large = hashlib.shake_128(b"large").digest(LARGE)
    async with to("/tracked") as connection:
        assert connection.subprotocol == "echo"
        for message in ("text", "", "ünïcode", b"\0bytes", large):
            await connection.send(message)
            assert await connection.recv() == message
        # A message in fragments, which comes back in one.
        await connection.send(large[i : i + 99_991] for i in range(0, LARGE, 99_991))
        assert await connection.recv() == large
        for number in range(300):
            await connection.send(str(number))
        assert [await connection.recv() for _ in range(300)] == [str(number) for number in range(300)]
        await (await connection.ping(b"still there"))
    assert connection.close_code == 1000


async def main():
    await echo()
    # Nothing is said for longer than a server that speaks first is waited for.
    async with to("/tracked") as quiet:
        await asyncio.sleep(1)
        await quiet.send("late")
        assert await quiet.recv() == "late"
    for code in (1000, 1001, 1008, 4321):
        said = await closed(f"/close/{code}")
        assert said == (code, "as asked"), said
    said = await closed("/drop")
    assert said is None, said
    async with to("/ping") as connection:
        assert await connection.recv() == "there"
    try:
        async with to("/refused"):
            raise AssertionError("it was not refused")
    except InvalidStatus as error:
        assert (error.response.status_code, error.response.body) == (403, b"not you\n"), error.response
    # The server learns how clients leave: of those above, and one that is cut off.
    async with to("/who-left") as connection:
        assert await connection.recv() == "1000"
    async with to("/who-left") as connection:
        assert await connection.recv() == "1000"
    cut = await to("/tracked")
    cut.transport.abort()
    async with to("/who-left") as connection:
        said = await connection.recv()
        assert said == "1006", said
    many = await asyncio.gather(*(to("/") for _ in range(50)))
    for number, connection in enumerate(many):
        await connection.send(str(number))
    assert [await connection.recv() for connection in many] == [str(number) for number in range(50)]
    await asyncio.gather(*(connection.close() for connection in many))
    print("ok", opened)


asyncio.run(listen() if sys.argv[1] == "serve" else asyncio.wait_for(main(), 60))

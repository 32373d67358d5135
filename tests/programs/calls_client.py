# SPDX-License-Identifier: Apache-2.0
"""Drives calls_server.py by grpcio on one channel. Usage: calls_client.py HOST CHECK. Says `ok` and how many calls it made."""
import asyncio
import hashlib
import json
import sys
import time
from collections import Counter

import grpc

TARGET = f"ipv4:{sys.argv[1]}:9700"
OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20),
           ("grpc.enable_retries", 0), ("grpc.default_authority", "calls.example")]
calls = 0


class Calls:
    """The methods of the service, each call counted."""

    def __init__(self, channel):
        self.channel = channel

    def __getattr__(self, name):
        kind = {"Collect": "stream_unary", "Expand": "unary_stream", "Endless": "unary_stream", "FailLate": "unary_stream",
                "Hang": "unary_stream", "Die": "unary_stream", "Echo": "stream_stream"}.get(name, "unary_unary")
        method = getattr(self.channel, kind)(f"/underground.Calls/{name}")

        def call(*args, timeout=30, **more):
            global calls
            calls += 1
            return method(*args, timeout=timeout, **more)

        return call


def expect(got, expected):
    assert got == expected, f"got {got!r}, expected {expected!r}"


async def fails(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("it did not fail")


async def replica(call):
    return dict(await call.initial_metadata())["x-replica"]


async def unary(to):
    for number in range(200):
        call = to.Unary(str(number).encode(), metadata=[("x-own", "text"), ("x-own-bin", bytes(range(256)))])
        expect(await call, str(number).encode())
        back = dict(await call.initial_metadata())
        expect((back["x-own"], back["x-own-bin"]), ("text", bytes(range(256))))
        expect(dict(await call.trailing_metadata()), {"x-trailing": "last", "x-trailing-bin": b"\0\xff\n"})


async def streams(to):
    """Client's, server's, and both ways, where each message is sent when the one before it has come back."""
    parts = [bytes([i % 256]) * (i * 7) for i in range(1000)]
    expect(await to.Collect(iter(parts)), hashlib.sha256(b"".join(parts)).digest())
    expect([part async for part in to.Expand(b"1000")], [str(i).encode() for i in range(1000)])
    call = to.Echo()
    for number in range(300):
        await call.write(str(number).encode())
        expect(await call.read(), str(number).encode())
    await call.done_writing()
    expect(await call.read(), grpc.aio.EOF)
    expect(await call.code(), grpc.StatusCode.OK)


async def saw(to, name):
    """Whether a replica has seen the call of this name go away; any may be asked."""
    until = time.monotonic() + 15
    while await to.Saw(name) != b"yes":
        assert time.monotonic() < until, "no server saw it"
        await asyncio.sleep(0.01)


async def deadline(to):
    name = f"deadline {time.monotonic()}".encode()
    call = to.Hang(name, timeout=0.5)
    remaining = float(await call.read())
    assert 0 < remaining < 1, f"the server believes in {remaining} s"
    expect((await fails(call.read())).code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    await saw(to, name)


async def cancel(to):
    name = f"cancel {time.monotonic()}".encode()
    call = to.Hang(name)
    await call.read()
    call.cancel()
    expect(await call.code(), grpc.StatusCode.CANCELLED)
    await saw(to, name)
    # A stream that goes on while its client has enough.
    call = to.Endless(b"")
    await call.read()
    call.cancel()
    expect(await call.code(), grpc.StatusCode.CANCELLED)


async def errors(to):
    """Trailers-only, after messages, and what no server knows."""
    for code in grpc.StatusCode:
        if code is grpc.StatusCode.OK:
            continue
        error = await fails(to.Fail(str(code.value[0]).encode()))
        expect((error.code(), error.details()), (code, f"it was {code.value[0]}: ünïcode %\n"))
        expect(dict(error.trailing_metadata()), {"x-trailing": "failed", "x-trailing-bin": b"\0\xff\n"})
    got = []
    call = to.FailLate(b"")
    try:
        async for part in call:
            got.append(part)
    except grpc.aio.AioRpcError as error:
        expect((error.code(), error.details(), len(got)), (grpc.StatusCode.DATA_LOSS, "after three", 3))
    else:
        raise AssertionError("the stream did not fail")
    expect((await fails(to.Nothing(b""))).code(), grpc.StatusCode.UNIMPLEMENTED)


async def die(to):
    """A server that is killed amidst its messages: the call fails as such, with what the proxy says of it."""
    got, call = [], to.Die(b"")
    try:
        async for part in call:
            got.append(part)
    except grpc.aio.AioRpcError as error:
        expect((error.code(), error.details(), got), (grpc.StatusCode.UNAVAILABLE, "connection broken", [b"first", b"second"]))
    else:
        raise AssertionError("the stream did not fail")


async def large(to):
    data = hashlib.shake_128(b"large").digest(10 << 20)
    for _ in range(3):
        assert await to.Unary(data) == data


async def concurrent(to):
    """All of them are open at once."""
    async def one(number):
        return await to.Slow(b"1")
    expect(await asyncio.gather(*(one(number) for number in range(1000))), [b"done"] * 1000)


async def slow_stream(to):
    """Streams that wait, and streams whose reader has stopped, beside calls that go on."""
    long_lived = to.Echo()
    await long_lived.write(b"begin")
    expect(await long_lived.read(), b"begin")
    stopped = [to.Endless(b"") for _ in range(5)]
    for call in stopped:
        await call.read()
    data = hashlib.shake_128(b"beside").digest(1 << 20)
    for number in range(50):
        expect(await to.Unary(str(number).encode()), str(number).encode())
        assert number % 10 or await to.Unary(data) == data
    await long_lived.write(b"end")
    expect(await long_lived.read(), b"end")
    for call in stopped:
        call.cancel()
    await long_lived.done_writing()


async def spread(to):
    """Says how many calls each replica answered: of one after another, and of those that are open at once."""
    counts = Counter()

    async def one():
        call = to.Unary(b"x")
        await call
        counts[await replica(call)] += 1

    for _ in range(300):
        await one()
    for _ in range(60):
        await asyncio.gather(*(one() for _ in range(10)))
    print("ok", json.dumps(counts))
    sys.exit(0)


async def client_id(to):
    """Says whom the server takes the client for, whatever the client says."""
    call = to.Unary(b"x", metadata=[("l5d-client-id", "forged")])
    await call
    print("ok", json.dumps([value for key, value in await call.initial_metadata() if key == "x-client"]))
    sys.exit(0)


async def main():
    async with grpc.aio.insecure_channel(TARGET, options=OPTIONS) as channel:
        await globals()[sys.argv[2]](Calls(channel))
    print("ok", calls)


asyncio.run(main())

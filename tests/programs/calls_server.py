# SPDX-License-Identifier: Apache-2.0
"""A gRPC server (grpcio) on 9700 without messages of its own: bytes in, bytes out; and HTTP/1.1 on 9701. Usage: calls_server.py [NAME].

After SIGTERM it goes on for 2 s, in which it is taken out of its service, and ends when its calls have.
"""
import asyncio
import hashlib
import os
import signal
import socket
import sys

import grpc

PORT = 9700
HTTP = 9701
NAME = sys.argv[1] if len(sys.argv) > 1 else socket.gethostname()
STAY = 2
cancelled = set()
LIMITS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]


def metadata(context):
    return {key: value for key, value in context.invocation_metadata()}


async def introduce(context):
    """Says who answers, and gives back what it was told."""
    given = metadata(context)
    back = [(key, value) for key, value in given.items() if key.startswith("x-own")]
    ids = [("x-client", value) for key, value in given.items() if key == "l5d-client-id"]
    await context.send_initial_metadata([("x-replica", NAME), *back, *ids])
    context.set_trailing_metadata([("x-trailing", "last"), ("x-trailing-bin", b"\0\xff\n")])


async def unary(request, context):
    await introduce(context)
    return request


async def collect(requests, context):
    await introduce(context)
    digest = hashlib.sha256()
    async for part in requests:
        digest.update(part)
    return digest.digest()


async def expand(request, context):
    await introduce(context)
    for number in range(int(request)):
        yield str(number).encode()


async def echo(requests, context):
    await introduce(context)
    async for request in requests:
        yield request


async def endless(request, context):
    await introduce(context)
    while True:
        yield bytes(1 << 16)


async def fail(request, context):
    """With a status before any message: trailers and nothing else."""
    code = int(request)
    context.set_trailing_metadata([("x-trailing", "failed"), ("x-trailing-bin", b"\0\xff\n")])
    await context.abort(next(c for c in grpc.StatusCode if c.value[0] == code), f"it was {code}: ünïcode %\n")


async def fail_late(request, context):
    await introduce(context)
    for number in range(3):
        yield str(number).encode()
    await context.abort(grpc.StatusCode.DATA_LOSS, "after three")


async def hang(request, context):
    """Says how long it may take, and goes on until the client goes away, which `saw` then knows."""
    yield str(context.time_remaining()).encode()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        cancelled.add(request)
        raise


async def die(request, context):
    """In the middle of its messages, and of all others."""
    yield b"first"
    yield b"second"
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


async def saw(request, context):
    return b"yes" if request in cancelled else b"no"


async def slow(request, context):
    await introduce(context)
    await asyncio.sleep(float(request))
    return b"done"


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Expand": grpc.unary_stream_rpc_method_handler(expand),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "Hang": grpc.unary_stream_rpc_method_handler(hang),
    "Die": grpc.unary_stream_rpc_method_handler(die),
    "Saw": grpc.unary_unary_rpc_method_handler(saw),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
}


async def answer(reader, writer, asked):
    """HTTP/1.1 for GET. Whoever has been asked to end says so with each answer."""
    try:
        while (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET "):
            ending = asked.is_set()
            head = f"HTTP/1.1 200 OK\r\nx-replica: {NAME}\r\nContent-Length: 3\r\nConnection: {'close' if ending else 'keep-alive'}\r\n\r\n"
            writer.write(head.encode() + b"up\n")
            await writer.drain()
            if ending:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


async def main():
    server = grpc.aio.server(options=LIMITS)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("underground.Calls", METHODS)])
    server.add_insecure_port(f"0.0.0.0:{PORT}")
    await server.start()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await asyncio.start_server(lambda reader, writer: answer(reader, writer, asked), "0.0.0.0", HTTP, backlog=1024)
    await asked.wait()
    await asyncio.sleep(STAY)
    await server.stop(10)


asyncio.run(main())

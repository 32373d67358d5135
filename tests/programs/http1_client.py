# SPDX-License-Identifier: Apache-2.0
"""Drives http1_server.py byte by byte. Usage: http1_client.py HOST CHECK. Says `ok` and how many requests it sent.

No library stands between it and the bytes, and it takes no answer that RFC 9112 does not allow.
"""
import hashlib
import json
import socket
import struct
import sys
import time

PORT = 9400
BLOCK = 1 << 16
HOST = sys.argv[1]
PATIENCE = 30

sent = 0


class Answer:
    def __init__(self, version, status):
        self.version, self.status = version, status
        self.headers, self.trailers, self.interim, self.body = [], [], [], b""

    def get(self, name):
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


class Connection:
    def __init__(self, port=PORT):
        self.socket = socket.create_connection((HOST, port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def send(self, method, target, *headers, version="1.1", body=b"", host="web.example"):
        global sent
        sent += 1
        lines = [f"{method} {target} HTTP/{version}", *([f"Host: {host}"] if host else []), *headers]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def head(self):
        line = self.file.readline()
        if not line:
            raise EOFError("the connection ended before an answer")
        version, status, _ = line.decode().split(" ", 2)
        answer = Answer(version, int(status))
        answer.headers = self.fields()
        return answer

    def fields(self):
        fields = []
        while (line := self.file.readline()) != b"\r\n":
            assert line.endswith(b"\r\n"), f"a header is {line}"
            fields.append(tuple(line[:-2].decode().split(": ", 1)))
        return fields

    def answer(self, method="GET", each=None):
        """Reads one answer; each part of its body goes to `each`, or is kept."""
        interim = []
        while (answer := self.head()).status < 200 and answer.status != 101:
            interim.append(answer)
        answer.interim = interim
        parts = []
        for part in self.body(answer, method):
            (each or parts.append)(part)
        answer.body = b"".join(parts)
        return answer

    def body(self, answer, method):
        if method == "HEAD" or answer.status in (101, 204, 304) or method == "CONNECT" and answer.status == 200:
            return
        if answer.get("transfer-encoding") == "chunked":
            while size := int(self.file.readline().split(b";")[0], 16):
                yield from self.exactly(size)
                assert self.file.readline() == b"\r\n"
            answer.trailers = self.fields()
        elif (length := answer.get("content-length")) is not None:
            yield from self.exactly(int(length))
        else:
            while part := self.file.read1(BLOCK):
                yield part

    def exactly(self, size):
        while size:
            part = self.file.read1(min(size, BLOCK))
            if not part:
                raise EOFError(f"{size} bytes of the body are missing")
            size -= len(part)
            yield part

    def ask(self, method, target, *headers, each=None, **more):
        self.send(method, target, *headers, **more)
        return self.answer(method, each)

    def ended(self):
        return self.file.read1(1) == b""

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        self.file.close()
        self.socket.close()


def ask(*args, **more):
    connection = Connection()
    answer = connection.ask(*args, **more)
    connection.close()
    return answer


def expect(got, expected):
    assert got == expected, f"got {got!r}, expected {expected!r}"


def seen(answer):
    expect(answer.status, 200)
    return json.loads(answer.body)


def named(fields, name):
    return [value for key, value in fields if key.lower() == name]


def blocks(size):
    for index in range(0, size, BLOCK):
        yield hashlib.shake_128(index.to_bytes(8)).digest(BLOCK)[: size - index]


def sha256(parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


# --- checks ---


def versions():
    """HTTP/1.0 with and without keep-alive, and without a Host; 1.1 that closes."""
    for headers, host, goes_on in (((), "web.example", False), ((), None, False), (("Connection: keep-alive",), "web.example", True)):
        connection = Connection()
        said = seen(connection.ask("GET", "/seen", *headers, version="1.0", host=host))
        expect(said["target"], "/seen")
        expect(len(named(said["headers"], "host")) <= 1, True)
        if goes_on:
            seen(connection.ask("GET", "/seen", "Connection: close", version="1.0"))
        expect(connection.ended(), True)
    connection = Connection()
    seen(connection.ask("GET", "/seen", "Connection: close"))
    expect(connection.ended(), True)
    # A server of HTTP/1.0 ends its answer with its connection.
    expect(ask("GET", "/old").body, b"".join(blocks(200_000)))


def keep_alive():
    connection = Connection()
    numbers = {seen(connection.ask("GET", f"/seen/{i}"))["connection"] for i in range(100)}
    expect(len(numbers), 1)


def pipeline():
    connection = Connection()
    for i in range(50):
        connection.send("POST", f"/seen/{i}", "Content-Length: 5", body=b"12345")
    said = [seen(connection.answer()) for _ in range(50)]
    expect([one["target"] for one in said], [f"/seen/{i}" for i in range(50)])
    expect(len({one["connection"] for one in said}), 1)


def chunked():
    """Both ways, in odd chunks with extensions, and trailers both ways."""
    connection = Connection()
    data = b"".join(blocks(300_000))
    connection.send("POST", "/sum", "Transfer-Encoding: chunked", "Trailer: x-checksum")
    for start in range(0, len(data), 7777):
        part = data[start : start + 7777]
        connection.socket.sendall(b"%x;ext=1\r\n%b\r\n" % (len(part), part))
    connection.socket.sendall(f"0\r\nx-checksum: {sha256([data])}\r\n\r\n".encode())
    said = seen(connection.answer())
    expect(said, {"sha256": sha256([data]), "trailers": [["x-checksum", sha256([data])]], "encoding": "chunked"})
    answer = connection.ask("GET", "/chunked/1000000", "TE: trailers")
    expect(answer.get("transfer-encoding"), "chunked")
    expect(dict(answer.trailers), {"x-sha256": sha256([answer.body]), "x-after": "all"})
    expect(sha256([answer.body]), sha256(blocks(1_000_000)))


def expectation():
    connection = Connection()
    connection.send("POST", "/expect/accept", "Expect: 100-continue", "Content-Length: 3")
    expect(connection.head().status, 100)
    connection.socket.sendall(b"abc")
    expect(seen(connection.answer())["sha256"], sha256([b"abc"]))
    # Whoever does not wait gets the same.
    answer = connection.ask("POST", "/expect/accept", "Expect: 100-continue", "Content-Length: 3", body=b"abc")
    expect(seen(answer)["sha256"], sha256([b"abc"]))
    connection.close()
    refused = Connection()
    answer = refused.ask("POST", "/expect/refuse", "Expect: 100-continue", "Content-Length: 3")
    expect((answer.status, answer.interim, answer.body), (417, [], b"do not send it\n"))
    refused.close()
    expect(ask("GET", "/wait/refused").status, 200)


def early_hints():
    """hyper's server cannot send them; the answer behind them must come as it is."""
    answer = ask("GET", "/early")
    expect((answer.status, answer.body), (200, b"late\n"))


def without_body():
    connection = Connection()
    answer = connection.ask("HEAD", "/head")
    expect((answer.status, answer.get("content-length"), answer.body), (200, "12", b""))
    for code in ("204", "304"):
        answer = connection.ask("GET", f"/status/{code}")
        expect((answer.status, answer.get("transfer-encoding"), answer.body), (int(code), None, b""))
        assert code == "304" or answer.get("content-length") is None
    for code in ("404", "500", "299", "599"):
        answer = connection.ask("GET", f"/status/{code}")
        expect((answer.status, answer.body), (int(code), b"as asked\n"))
    expect(connection.ask("GET", "/head").body, b"underground\n")


def targets():
    connection = Connection()
    answer = connection.ask("OPTIONS", "*")
    expect((answer.status, answer.get("allow")), (204, "GET, OPTIONS"))
    said = seen(connection.ask("GET", "http://web.example/seen/absolute?q=1"))
    assert said["target"] in ("/seen/absolute?q=1", "http://web.example/seen/absolute?q=1"), said
    expect(named(said["headers"], "host"), ["web.example"])
    for target in ("/seen/a%2Fb//c/../d?x=%20&y;z", "/seen/" + "t" * 4000, "/seen/~!$&'()*+,;=:@", "/seen?"):
        expect(seen(connection.ask("GET", target))["target"], target)
    for method in ("PATCH", "DELETE", "PROPFIND", "M-SEARCH", "X"):
        expect(seen(connection.ask(method, "/seen"))["method"], method)


def headers():
    """Below every limit; repeated ones in their order; what is between two hops stays there."""
    connection = Connection()
    many = [f"x-number-{i}: {i}{'v' * 200}" for i in range(50)]
    several = [f"x-several: {i}" for i in range(5)]
    said = seen(connection.ask("GET", "/seen", "x-large: " + "l" * 8000, *several, *many, "X-MiXeD: Kept As It Is"))
    expect(named(said["headers"], "x-large"), ["l" * 8000])
    expect(named(said["headers"], "x-several"), [str(i) for i in range(5)])
    expect(sum(1 for key, _ in said["headers"] if key.lower().startswith("x-number-")), 50)
    expect(named(said["headers"], "x-mixed"), ["Kept As It Is"])
    expect(named(said["headers"], "host"), ["web.example"])
    expect([key for key, _ in said["headers"] if key.lower().startswith("l5d-") and key.lower() != "l5d-client-id"], [])


def tunnel():
    """CONNECT to the server that speaks first; and one that is refused, on whose connection it goes on."""
    connection = Connection()
    answer = connection.ask("CONNECT", "127.0.0.1:9401", host="127.0.0.1:9401")
    expect(answer.status, 200)
    expect(connection.file.readline(), b"220 speaks first\r\n")
    connection.socket.sendall(b"one\r\ntwo\r\n")
    expect(connection.file.readline() + connection.file.readline(), b"250 one\r\n250 two\r\n")
    connection.socket.shutdown(socket.SHUT_WR)
    expect(connection.ended(), True)
    refused = Connection()
    answer = refused.ask("CONNECT", "forbidden.example:443", host="forbidden.example:443")
    expect((answer.status, answer.body), (403, b"not there\n"))


def upgrade():
    connection = Connection()
    answer = connection.ask("GET", "/upgrade", "Connection: Upgrade", "Upgrade: echo")
    expect((answer.status, answer.get("upgrade")), (101, "echo"))
    expect(connection.file.readline(), b"welcome\n")
    data = b"".join(blocks(3_000_000))
    for start in range(0, len(data), 100_000):
        part = data[start : start + 100_000]
        connection.socket.sendall(part)
        expect(connection.file.read(len(part)) == part, True)
    connection.socket.shutdown(socket.SHUT_WR)
    expect(connection.file.read(), b"that was all\n")
    # What the server does not take is an answer like any other.
    refused = Connection()
    answer = refused.ask("GET", "/upgrade", "Connection: Upgrade", "Upgrade: other")
    expect((answer.status, answer.get("upgrade"), answer.body), (426, "echo", b"upgrade\n"))
    seen(refused.ask("GET", "/seen"))


def large():
    size = 100 << 20
    digest = hashlib.sha256()
    answer = ask("GET", f"/bytes/{size}", each=digest.update)
    expect((answer.get("content-length"), digest.hexdigest()), (str(size), sha256(blocks(size))))
    connection = Connection()
    connection.send("PUT", "/sum", f"Content-Length: {size}")
    for part in blocks(size):
        connection.socket.sendall(part)
    expect(seen(connection.answer())["sha256"], digest.hexdigest())


def server_events():
    """No event goes before the one before it was confirmed: any that is kept on the way stops it all."""
    name = f"sse{time.monotonic_ns()}"
    stream, other = Connection(), Connection()
    stream.send("GET", f"/events/{name}", "Accept: text/event-stream")
    expect(stream.head().get("content-type"), "text/event-stream")
    for number in range(20):
        size = int(stream.file.readline(), 16)
        text = stream.file.read(size + 2).decode()
        expect(text, f"id: {number}\ndata: event {number} of {name}\n\n\r\n")
        expect(other.ask("POST", f"/confirm/{name}/{number}").status, 204)
    expect(stream.file.readline(), b"0\r\n")


def slow_reader():
    """Reads a MiB of an endless answer and no more: the server comes to a halt. Then goes away: the server sees that."""
    name = f"slow{time.monotonic_ns()}"
    connection, other = Connection(), Connection()
    connection.send("GET", f"/endless/{name}")
    expect(connection.head().status, 200)
    connection.file.read(1 << 20)
    before = -1
    while (now := int(other.ask("GET", f"/written/{name}").body)) != before:
        before = now
        time.sleep(0.3)
    connection.close()
    expect(other.ask("GET", f"/wait/{name}").status, 200)
    print("halted at", now, file=sys.stderr)
    return now


def hold_slow():
    """As many slow readers as it takes to see what they cost; says so, and goes on when told to."""
    connections = []
    for number in range(20):
        connection = Connection()
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.send("GET", f"/endless/hold{number}")
        expect(connection.head().status, 200)
        connections.append(connection)
    other = Connection()
    before = None
    while (now := [int(other.ask("GET", f"/written/hold{number}").body) for number in range(20)]) != before:
        before = now
        time.sleep(0.3)
    print("held", sum(now), flush=True)
    sys.stdin.readline()


def slow_writer():
    """A byte at a time, over the pieces that one may cut it into."""
    connection = Connection()
    for byte in b"POST /sum HTTP/1.1\r\nHost: web.example\r\nContent-Length: 5\r\n\r\nabcde":
        connection.socket.sendall(bytes([byte]))
        time.sleep(0.001)
    global sent
    sent += 1
    expect(seen(connection.answer())["sha256"], sha256([b"abcde"]))


def client_aborts():
    """In an answer and in an upload, by end and by reset: the server learns of it."""
    other = Connection()
    for leave in (Connection.close, Connection.reset):
        name = f"leave{time.monotonic_ns()}"
        connection = Connection()
        connection.send("GET", f"/endless/{name}")
        connection.file.read(100_000)
        leave(connection)
        expect(other.ask("GET", f"/wait/{name}").status, 200)
        for headers, part in ((("Content-Length: 1000000",), b"u" * 1000), (("Transfer-Encoding: chunked",), b"5\r\nabcde\r\n")):
            connection = Connection()
            connection.send("POST", "/sum", f"x-say: {name}", *headers, body=part)
            expect(other.ask("GET", f"/wait/{name}").status, 200)
            leave(connection)
            expect(other.ask("GET", "/wait/an%20upload%20that%20ended").status, 200)


def server_aborts():
    """Half of an answer never looks like a whole one."""
    other = Connection()
    for framing in ("length", "chunked"):
        for how in ("close", "reset"):
            connection = Connection()
            connection.send("GET", f"/abort/{framing}/{how}")
            answer = connection.head()
            expect(answer.status, 200)
            body = connection.body(answer, "GET")
            got = len(next(body))
            expect(other.ask("POST", "/confirm/half").status, 204)
            try:
                for part in body:
                    got += len(part)
            except (EOFError, ConnectionError, ValueError):
                assert got <= 50_000, got
            else:
                raise AssertionError(f"{framing} {how}: {got} bytes looked like all")


def late():
    """Says nothing for longer than a server that speaks first is waited for, and then HTTP."""
    for wait in (0.05, 0.3, 1.0):
        connection = Connection()
        time.sleep(wait)
        for _ in range(3):
            expect(seen(connection.ask("GET", "/seen"))["target"], "/seen")


def speaks_first():
    """Says how long the first byte took, in microseconds, in the middle of many."""
    took = []
    for _ in range(50):
        begin = time.monotonic()
        connection = Connection(9401)
        expect(connection.file.readline(), b"220 speaks first\r\n")
        took.append(time.monotonic() - begin)
        connection.socket.sendall(b"hello\r\n")
        expect(connection.file.readline(), b"250 hello\r\n")
        connection.close()
    print("ok", int(sorted(took)[25] * 1e6))
    sys.exit(0)


def forged():
    """What says that it comes from a proxy. Says what the server saw of it."""
    said = seen(ask("GET", "/seen", "l5d-client-id: nobody.default.serviceaccount.identity.cluster.local", "L5D-Client-Id: again",
                    "l5d-proxy-error: forged", "l5d-dst-override: elsewhere:80", "x-own: kept"))
    expect(named(said["headers"], "x-own"), ["kept"])
    print("ok", json.dumps(sorted((key.lower(), value) for key, value in said["headers"] if key.lower().startswith("l5d-"))))
    sys.exit(0)


globals()[sys.argv[2]]()
print("ok", sent)

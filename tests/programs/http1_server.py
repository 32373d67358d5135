# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1 server on 9400 that answers byte for byte as its path says, a CONNECT proxy, and on 9401 a server that speaks first.

No library stands between it and the bytes: what it says of a request is what arrived.
"""
import hashlib
import json
import socket
import struct
import threading

PORT = 9400
FIRST = 9401
BLOCK = 1 << 16
PATIENCE = 20

numbers = iter(range(1, 1 << 30))
lock = threading.Lock()
events = {}
written = {}


def event(name):
    """Something that one request waits for and another, or the end of a connection, sets off."""
    with lock:
        return events.setdefault(name, threading.Semaphore(0))


def blocks(size):
    """The same bytes every time, none of whose parts are alike."""
    for index in range(0, size, BLOCK):
        yield hashlib.shake_128(index.to_bytes(8)).digest(BLOCK)[: size - index]


class Request:
    def __init__(self, connection, head):
        self.connection = connection
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, self.version = first.split(" ")
        self.headers = [tuple(line.split(": ", 1)) for line in lines if line]
        self.trailers = []

    def get(self, name):
        return next((value for key, value in self.headers if key.lower() == name), None)

    def seen(self):
        """What arrived, for whoever wants to compare."""
        said = {"method": self.method, "target": self.target, "version": self.version, "headers": self.headers,
                "trailers": self.trailers, "connection": self.connection.number, "peer": self.connection.socket.getpeername()[0]}
        return json.dumps(said).encode() + b"\n"

    def body(self):
        try:
            for part in self.parts():
                if self.get("x-say"):
                    event(self.get("x-say")).release()
                yield part
        except ConnectionError:
            event("an upload that ended").release()
            raise

    def parts(self):
        file = self.connection.file
        if self.get("transfer-encoding") == "chunked":
            while size := int(self.line().split(b";")[0], 16):
                yield file.read(size)
                assert self.line() == b"\r\n"
            while (line := self.line().strip().decode()) != "":
                self.trailers.append(tuple(line.split(": ", 1)))
            return
        left = int(self.get("content-length") or 0)
        while left:
            part = file.read1(min(left, BLOCK))
            if not part:
                raise ConnectionError("the client ended in a body")
            left -= len(part)
            yield part

    def line(self):
        line = self.connection.file.readline()
        if not line:
            raise ConnectionError("the client ended in a body")
        return line


class Connection:
    def __init__(self, connected):
        self.socket = connected
        self.file = connected.makefile("rb")
        self.number = next(numbers)

    def serve(self):
        while head := self.head():
            request = Request(self, head)
            self.goes_on = request.get("connection") != "close" if request.version == "HTTP/1.1" else request.get("connection") == "keep-alive"
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            again = getattr(self, "do_" + request.target.split("/")[1], self.do_seen)(request) if request.target.startswith("/") \
                else self.special(request)
            if again is False or not self.goes_on:
                return

    def head(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.file.readline()
            if not line:
                return b""
            head += line
        return head[:-2]

    def say(self, status, *headers, body=None):
        length = () if body is None else (f"Content-Length: {len(body)}",)
        if not any(header.startswith("Connection:") for header in headers):
            headers = (f"Connection: {'keep-alive' if self.goes_on else 'close'}", *headers)
        lines = [f"HTTP/1.1 {status}", *headers, *length]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))

    def chunk(self, part):
        self.socket.sendall(b"%x\r\n%b\r\n" % (len(part), part))

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.socket.close()
        return False

    def special(self, request):
        if request.method == "CONNECT":
            return self.tunnel(request)
        if request.method == "OPTIONS" and request.target == "*":
            return self.say("204 No Content", "Allow: GET, OPTIONS")
        return self.do_seen(request)

    def tunnel(self, request):
        host, port = request.target.rsplit(":", 1)
        if host == "forbidden.example":
            return self.say("403 Forbidden", body=b"not there\n")
        with socket.create_connection((host, int(port))) as other:
            self.socket.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pipe, args=(other, self.socket))
            back.start()
            while part := self.file.read1(BLOCK):
                other.sendall(part)
            other.shutdown(socket.SHUT_WR)
            back.join()
        return False

    # --- by the first part of the path ---

    def do_seen(self, request):
        for _ in request.body():
            pass
        self.say("200 OK", "Content-Type: application/json", body=request.seen())

    def do_status(self, request):
        code = request.target.split("/")[2]
        # 304 says a length that nothing has.
        self.say(f"{code} As Asked", *(("Content-Length: 12",) if code == "304" else ()), body=None if code in ("204", "304") else b"as asked\n")

    def do_head(self, request):
        body = b"underground\n"
        self.say("200 OK", f"Content-Length: {len(body)}")
        if request.method != "HEAD":
            self.socket.sendall(body)

    def do_old(self, request):
        self.socket.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        for part in blocks(200_000):
            self.socket.sendall(part)
        return False

    def do_bytes(self, request):
        size = int(request.target.split("/")[2])
        self.say("200 OK", f"Content-Length: {size}")
        for part in blocks(size):
            self.socket.sendall(part)

    def do_chunked(self, request):
        digest = hashlib.sha256()
        self.say("200 OK", "Transfer-Encoding: chunked", "Trailer: x-sha256, x-after")
        for part in blocks(int(request.target.split("/")[2])):
            digest.update(part)
            self.chunk(part)
        self.socket.sendall(f"0\r\nx-sha256: {digest.hexdigest()}\r\nx-after: all\r\n\r\n".encode())

    def do_sum(self, request):
        digest = hashlib.sha256()
        for part in request.body():
            digest.update(part)
        said = {"sha256": digest.hexdigest(), "trailers": request.trailers, "encoding": request.get("transfer-encoding")}
        self.say("200 OK", body=json.dumps(said).encode())

    def do_expect(self, request):
        if request.get("expect") != "100-continue":
            return self.say("400 Bad Request", body=b"nothing was expected\n")
        if request.target.endswith("refuse"):
            self.say("417 Expectation Failed", "Connection: close", body=b"do not send it\n")
            # Whatever the client sends all the same.
            self.socket.settimeout(1)
            try:
                event("refused").release() if self.file.read1(1) == b"" else event("sent all the same").release()
            except OSError:
                event("refused").release()
            return False
        self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self.do_sum(request)

    def do_early(self, request):
        """Hints before the answer (RFC 8297), which hyper does not pass on."""
        self.socket.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
        self.say("200 OK", body=b"late\n")

    def do_events(self, request):
        """Each event goes only when the one before it was confirmed by a request of its own."""
        name = request.target.split("/")[2]
        self.say("200 OK", "Content-Type: text/event-stream", "Cache-Control: no-store", "Transfer-Encoding: chunked")
        for number in range(20):
            self.chunk(f"id: {number}\ndata: event {number} of {name}\n\n".encode())
            if not event(f"{name} {number}").acquire(timeout=PATIENCE):
                return self.reset()
        self.socket.sendall(b"0\r\n\r\n")

    def do_confirm(self, request):
        event(" ".join(request.target.split("/")[2:])).release()
        self.say("204 No Content")

    def do_wait(self, request):
        """Answers when something was set off."""
        there = event(request.target.split("/")[2].replace("%20", " ")).acquire(timeout=PATIENCE)
        self.say("200 OK" if there else "504 Never", body=b"")

    def do_endless(self, request):
        name = request.target.split("/")[2]
        written[name] = 0
        self.say("200 OK", "Transfer-Encoding: chunked")
        try:
            while True:
                part = bytes(BLOCK)
                # Counted as it goes: a send that blocks has not gone.
                self.chunk(part)
                written[name] += len(part)
        except OSError as error:
            written[name + " error"] = str(error)
            event(name).release()
            return False

    def do_written(self, request):
        name = request.target.split("/")[2]
        self.say("200 OK", body=str(written.get(name, 0)).encode())

    def do_abort(self, request):
        """Half of an answer: length|chunked / close|reset."""
        _, _, framing, how = request.target.split("/")
        chunked = framing == "chunked"
        self.say("200 OK", "Transfer-Encoding: chunked" if chunked else "Content-Length: 100000")
        self.chunk(b"h" * 50_000) if chunked else self.socket.sendall(b"h" * 50_000)
        # So that the half is there before the end is.
        event("half").acquire(timeout=PATIENCE)
        return self.reset() if how == "reset" else False

    def do_upgrade(self, request):
        if request.get("upgrade") != "echo":
            return self.say("426 Upgrade Required", "Upgrade: echo", "Connection: Upgrade", body=b"upgrade\n")
        self.socket.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nwelcome\n")
        while part := self.file.read1(BLOCK):
            self.socket.sendall(part)
        self.socket.sendall(b"that was all\n")
        return False


def pipe(source, sink):
    while part := source.recv(BLOCK):
        sink.sendall(part)
    sink.shutdown(socket.SHUT_WR)


def serve(connected):
    with connected:
        try:
            Connection(connected).serve()
        except (ConnectionError, BrokenPipeError) as error:
            print("a connection:", error, flush=True)


def speak_first(connected):
    with connected, connected.makefile("rb") as file:
        connected.sendall(b"220 speaks first\r\n")
        for line in file:
            connected.sendall(b"250 " + line)


def listen(port, work):
    listener = socket.create_server(("0.0.0.0", port), backlog=1024)
    while True:
        connected, _ = listener.accept()
        threading.Thread(target=work, args=(connected,), daemon=True).start()


threading.Thread(target=listen, args=(FIRST, speak_first), daemon=True).start()
listen(PORT, serve)

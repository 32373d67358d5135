# SPDX-License-Identifier: Apache-2.0
"""Upgrades an HTTP/1.1 connection and then sends bytes that are no HTTP. Usage: upgrade.py HOST."""
import random
import socket
import sys
import threading

connection = socket.create_connection((sys.argv[1], 9200), timeout=30)
connection.sendall(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
head = b""
while b"\r\n\r\n" not in head:
    head += connection.recv(4096)
head, _, rest = head.partition(b"\r\n\r\n")
assert head.startswith(b"HTTP/1.1 101 "), head
rng = random.Random(7)
for size in (1, 3, 1000, 5_000_000):
    body = rng.randbytes(size)
    sender = threading.Thread(target=connection.sendall, args=(body,))
    sender.start()
    while len(rest) < size:
        part = connection.recv(1 << 16)
        assert part, "the server ended"
        rest += part
    sender.join()
    assert rest == body, f"the echo of {size} bytes is not what was sent"
    rest = b""
print("ok")

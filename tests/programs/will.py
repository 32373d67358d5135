# SPDX-License-Identifier: Apache-2.0
"""An MQTT client that leaves a will and ends its connection with RST. Usage: will.py HOST TOPIC PAYLOAD."""
import socket
import struct
import sys


def text(value):
    data = value.encode()
    return struct.pack("!H", len(data)) + data


host, topic, payload = sys.argv[1:]
WILL_AND_CLEAN = 0x06
KEEPALIVE = 600
body = text("MQTT") + bytes([4, WILL_AND_CLEAN]) + struct.pack("!H", KEEPALIVE)
body += text("leaves-a-will") + text(topic) + text(payload)
connection = socket.create_connection((host, 1883), timeout=10)
connection.sendall(bytes([0x10, len(body)]) + body)
answer = connection.recv(4)
if answer != bytes([0x20, 2, 0, 0]):
    sys.exit(f"CONNACK was {answer!r}")
connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
connection.close()

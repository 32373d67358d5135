# SPDX-License-Identifier: Apache-2.0
"""Listens on a PostgreSQL channel with libpq, on a connection that is idle until it is told something.

Usage: notifications.py CONNINFO CHANNEL. Prints `listening`, then the payload of the first notification.
"""
import ctypes
import select
import sys


class Notification(ctypes.Structure):
    _fields_ = [("channel", ctypes.c_char_p), ("pid", ctypes.c_int), ("payload", ctypes.c_char_p)]


pq = ctypes.CDLL("libpq.so.5")
pq.PQconnectdb.restype = pq.PQexec.restype = ctypes.c_void_p
pq.PQerrorMessage.restype = ctypes.c_char_p
pq.PQnotifies.restype = ctypes.POINTER(Notification)
for function in (pq.PQstatus, pq.PQerrorMessage, pq.PQsocket, pq.PQconsumeInput, pq.PQnotifies, pq.PQresultStatus):
    function.argtypes = [ctypes.c_void_p]
pq.PQexec.argtypes = [ctypes.c_void_p, ctypes.c_char_p]

COMMAND_OK = 1

connection = pq.PQconnectdb(sys.argv[1].encode())
if pq.PQstatus(connection) != 0:
    sys.exit(pq.PQerrorMessage(connection).decode())
if pq.PQresultStatus(pq.PQexec(connection, f"LISTEN {sys.argv[2]}".encode())) != COMMAND_OK:
    sys.exit(pq.PQerrorMessage(connection).decode())
print("listening", flush=True)
while True:
    select.select([pq.PQsocket(connection)], [], [])
    if not pq.PQconsumeInput(connection):
        sys.exit(pq.PQerrorMessage(connection).decode())
    notification = pq.PQnotifies(connection)
    if notification:
        print(notification.contents.payload.decode(), flush=True)
        break

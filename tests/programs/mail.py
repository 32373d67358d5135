# SPDX-License-Identifier: Apache-2.0
"""Sends three mails in one session. Usage: mail.py HOST SUBJECT SIZE. Says the SHA-256 of their body."""
import hashlib
import smtplib
import sys

host, subject, size = sys.argv[1:]
line = "underground " * 6 + "\r\n"
body = line * (int(size) // len(line))
with smtplib.SMTP(host, 25, timeout=60) as session:
    for part in range(3):
        message = f"From: <client@client>\r\nTo: <nobody@mail>\r\nSubject: {subject} {part}\r\n\r\n{body}"
        refused = session.sendmail("client@client", ["nobody@mail"], message)
        assert not refused, refused
print(hashlib.sha256(body.replace("\r\n", "\n").encode()).hexdigest())

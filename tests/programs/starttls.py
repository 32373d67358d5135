# SPDX-License-Identifier: Apache-2.0
"""As much of a mail server as a client needs that insists on STARTTLS. Usage: starttls.py DIRECTORY."""
import asyncio
import ssl
import sys

directory = sys.argv[1]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem")


async def converse(reader, writer):
    async def say(line):
        writer.write(line.encode() + b"\r\n")
        await writer.drain()

    secure = False
    await say("220 mail ESMTP")
    while line := (await reader.readline()).decode().strip():
        verb = line.split()[0].upper()
        if verb == "EHLO":
            await say("250 mail" if secure else "250-mail\r\n250 STARTTLS")
        elif verb == "STARTTLS":
            await say("220 go on")
            await writer.start_tls(context)
            secure = True
        elif verb in ("MAIL", "RCPT"):
            await say("250 ok" if secure else "530 not in the clear")
        elif verb == "DATA":
            await say("354 go on")
            mail = await reader.readuntil(b"\r\n.\r\n")
            with open(f"{directory}/mail", "wb") as file:
                file.write(mail.removesuffix(b".\r\n"))
            await say("250 kept")
        elif verb == "QUIT":
            await say("221 bye")
            break
        else:
            await say("502 what?")
    writer.close()


async def main():
    server = await asyncio.start_server(converse, "0.0.0.0", 587, limit=64 << 20)
    await server.serve_forever()


asyncio.run(main())

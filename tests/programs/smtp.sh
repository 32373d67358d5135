#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# OpenSMTPD, which keeps everybody's mail in $1/mail. Without TLS: Debian 12's fails with any key under OpenSSL 3.
set -eu
# Its spool and its socket have fixed places: here they are the pod's own.
mount -t tmpfs none /var/spool
mount -t tmpfs none /run
chmod 755 "$1/.." "$1"
mkdir -p "$1/mail"
chown nobody "$1/mail"
cat > "$1/smtpd.conf" <<CONF
smtp max-message-size 64M
queue ttl 1m
listen on 0.0.0.0 port 25 hostname mail
action keep maildir "$1/mail"
match from any for any action keep
CONF
chmod 600 "$1/smtpd.conf"
exec smtpd -d -f "$1/smtpd.conf"

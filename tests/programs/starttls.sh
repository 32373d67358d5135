#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The mail server of starttls.py, with a certificate of its own in $1, where it keeps the mail.
set -eu
[ -e "$1/cert.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mail \
    -addext subjectAltName=DNS:mail -keyout "$1/key.pem" -out "$1/cert.pem"
exec python3 "$(dirname "$0")/starttls.py" "$1"

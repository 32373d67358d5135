#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The asyncio server of streams.py, with a certificate of its own in $1.
set -eu
[ -e "$1/cert.pem" ] ||
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=streams \
        -addext subjectAltName=DNS:streams -keyout "$1/key.pem" -out "$1/cert.pem"
exec python3 "$(dirname "$0")/streams.py" serve "$1/cert.pem" "$1/key.pem"

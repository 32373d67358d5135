#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# MariaDB with a fresh data directory in $1, without passwords; TLS is offered.
set -eu
[ -d "$1/mysql" ] || mariadb-install-db --no-defaults --user=root --skip-test-db "--datadir=$1"
[ -e "$1/cert.pem" ] || openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=mariadb -keyout "$1/key.pem" -out "$1/cert.pem"
exec mariadbd --no-defaults --user=root --skip-grant-tables --bind-address=0.0.0.0 --port=3306 --skip-name-resolve \
    --ssl-cert="$1/cert.pem" --ssl-key="$1/key.pem" --innodb-flush-log-at-trx-commit=0 "--datadir=$1" "--socket=$1/socket" "--pid-file=$1/pid"

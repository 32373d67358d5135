#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PostgreSQL with a fresh cluster in $1: everybody is trusted, TLS is offered, nothing is synced to disk.
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
data=$1/data
chown postgres "$1"
cd "$1"
as_postgres="setpriv --reuid=postgres --regid=postgres --clear-groups"

if [ ! -e "$data/PG_VERSION" ]; then
    $as_postgres "$bin/initdb" -D "$data" -U postgres -A trust -E UTF8 --no-locale --no-sync
    echo "host all all all trust" >> "$data/pg_hba.conf"
    echo "ssl = on" >> "$data/postgresql.conf"
    $as_postgres openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=postgres \
        -keyout "$data/server.key" -out "$data/server.crt"
fi
# Shared memory of its own, as a pod has it: nothing of it stays behind.
# shellcheck disable=SC2086 # a command with its arguments
exec unshare --ipc $as_postgres "$bin/postgres" -D "$data" -c listen_addresses=0.0.0.0 -c "unix_socket_directories=$data" \
    -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c wal_level=minimal -c max_wal_senders=0 \
    -c autovacuum=off -c synchronize_seqscans=off -c dynamic_shared_memory_type=mmap -c max_wal_size=4GB

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# sshd with a host key of its own, for the key that it makes in $1/id; and an HTTP server of $1/files on loopback.
set -eu
# Where sshd separates privileges has a fixed place: here it is the pod's own.
mount -t tmpfs none /run
mkdir -p /run/sshd "$1/files"
[ -e "$1/host" ] || ssh-keygen -q -t ed25519 -N "" -f "$1/host"
[ -e "$1/id" ] || ssh-keygen -q -t ed25519 -N "" -f "$1/id"
echo "server $(cut -d ' ' -f 1,2 "$1/host.pub")" > "$1/known_hosts"
cat > "$1/sshd_config" <<CONF
Port 22
ListenAddress 0.0.0.0
HostKey $1/host
AuthorizedKeysFile $1/id.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
CONF
cat > "$1/config" <<CONF
Host *
    User root
    IdentityFile $1/id
    IdentitiesOnly yes
    HostKeyAlias server
    UserKnownHostsFile $1/known_hosts
    StrictHostKeyChecking yes
    BatchMode yes
CONF
python3 -m http.server --bind 127.0.0.1 --directory "$1/files" 8000 &
exec /usr/sbin/sshd -D -e -f "$1/sshd_config"

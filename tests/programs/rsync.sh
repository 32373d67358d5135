#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# rsync as a daemon with one module, $1/tree.
set -eu
mkdir -p "$1/tree"
cat > "$1/rsyncd.conf" <<CONF
address = 0.0.0.0
use chroot = no
uid = root
gid = root
reverse lookup = no
[tree]
path = $1/tree
read only = no
CONF
exec rsync --daemon --no-detach --log-file=/dev/stderr --config="$1/rsyncd.conf"

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The images that every node has: localhost/pause:1 and localhost/busybox:1, into $ROOT/images.
set -euo pipefail; ROOT=${ROOT:-/opt/k8s}
here=$(dirname "$(realpath "$0")"); img=$ROOT/images; mkdir -p $img
t=$(mktemp -d); trap 'rm -rf "$t"' EXIT
mkdir -p $t/pause
gcc -Os -Wall -Werror -static -DVERSION=3.4 -o $t/pause/pause $ROOT/src/k8s-1.20/build/pause/linux/pause.c; strip $t/pause/pause
$here/mkimage.sh $img/pause.tar localhost/pause:1 $t/pause -e '["/pause"]'
mkdir -p $t/bb/{bin,sbin,usr/bin,usr/sbin,etc,tmp,root,var,www,proc,sys,dev}; chmod 1777 $t/bb/tmp
cp /bin/busybox $t/bb/bin/busybox
for a in $(/bin/busybox --list-full); do [ -e $t/bb/$a ] || ln -s /bin/busybox $t/bb/$a; done
echo 'root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false' > $t/bb/etc/passwd
echo 'root:x:0:
nogroup:x:65534:' > $t/bb/etc/group
echo 'hosts: files dns' > $t/bb/etc/nsswitch.conf
$here/mkimage.sh $img/busybox.tar localhost/busybox:1 $t/bb -c '["/bin/sh"]'

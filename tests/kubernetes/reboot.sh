#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# reboot.sh I: ends node I as a power cut does: processes, /run, /sys/fs/bpf, network and cgroups go, disks stay. up.sh starts it again.
set -euo pipefail
. $(dirname "$(realpath "$0")")/env.sh
p=$(cat $PIDS/n$1); kill -9 $(pgrep -P $p) $p || true
for _ in $(seq 100); do kill -0 $p 2>/dev/null || break; sleep .1; done; rm -f $PIDS/n$1
ip netns del $LAB-n$1; nsenter --net=/run/netns/$LAB-sw -- ip link del p-n$1 2>/dev/null || true
for _ in $(seq 50); do
  for d in /sys/fs/cgroup/*/$LAB-n$1; do [ -d $d ] && find $d -depth -type d -exec rmdir {} + 2>/dev/null || true; done
  ls -d /sys/fs/cgroup/*/$LAB-n$1 >/dev/null 2>&1 || exit 0; sleep .2
done
echo "cgroups of n$1 are left"; exit 1

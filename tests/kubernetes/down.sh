#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Stops what up.sh started (by pid file) and removes its namespaces, cgroups and state. KEEP=1 keeps logs and state.
. $(dirname "$(realpath "$0")")/env.sh
for f in $PIDS/n* $PIDS/kube-scheduler $PIDS/kube-controller-manager $PIDS/kube-apiserver $PIDS/etcd; do
  [ -f $f ] || continue; p=$(cat $f)
  case $(basename $f) in n*) w=unshare;; *) w=$(basename $f);; esac   # a stale pid file must not kill a stranger
  tr '\0' ' ' < /proc/$p/cmdline 2>/dev/null | grep -q -- "$w" || { rm -f $f; continue; }
  case $(basename $f) in n*) kill -9 $(pgrep -P $p) $p 2>/dev/null;; *) kill -9 $p 2>/dev/null;; esac
  for _ in $(seq 50); do kill -0 $p 2>/dev/null || break; sleep .1; done; rm -f $f
done
for nsn in $(ip netns list | awk '{print $1}' | grep -E "^$LAB-(sw|cp|n[0-9]+)$"); do ip netns del $nsn; done
for _ in $(seq 50); do
  for d in /sys/fs/cgroup/*/$LAB-n[0-9]*; do [ -d $d ] && find $d -depth -type d -exec rmdir {} + 2>/dev/null; done
  ls -d /sys/fs/cgroup/*/$LAB-n[0-9]* >/dev/null 2>&1 || break; sleep .2
done
[ -n "${KEEP:-}" ] || rm -rf --one-file-system $RUN $ETCDDIR
left=$(ls -d /sys/fs/cgroup/*/$LAB-n[0-9]* /run/netns/$LAB-* 2>/dev/null)
[ -z "$left" ] || { echo "left: $left"; exit 1; }

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mkimage.sh OUT.tar NAME:TAG ROOTDIR [-e ENTRYPOINT_JSON] [-c CMD_JSON] [-u USER] [-E K=V]...
# Makes a one-layer docker-archive tar (importable with `ctr -n k8s.io images import`) from a directory.
# Deterministic: sorted, owner 0:0, mtime 0.  No docker, no registry, no network.
set -euo pipefail
out=$(realpath -m "$1"); ref=$2; root=$3; shift 3
ep='[]'; cmd='[]'; user=''; env='["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"'
while getopts e:c:u:E: o; do case $o in
  e) ep=$OPTARG;; c) cmd=$OPTARG;; u) user=$OPTARG;; E) env="$env,\"$OPTARG\"";; *) exit 2;; esac; done
env="$env]"
case $ref in */*) full=$ref;; *) full=docker.io/library/$ref;; esac   # what the CRI normalises a short name to
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$root" -cf "$w/layer.tar" .
d=$(sha256sum "$w/layer.tar" | cut -d' ' -f1)
printf '{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Env":%s,"Entrypoint":%s,"Cmd":%s,"User":"%s","WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"1970-01-01T00:00:00Z"}]}' \
  "$env" "$ep" "$cmd" "$user" "$d" > "$w/config.json"
c=$(sha256sum "$w/config.json" | cut -d' ' -f1); mv "$w/config.json" "$w/$c.json"
mkdir "$w/$d"; mv "$w/layer.tar" "$w/$d/layer.tar"
printf '[{"Config":"%s.json","RepoTags":["%s"],"Layers":["%s/layer.tar"]}]' "$c" "$full" "$d" > "$w/manifest.json"
tar --owner=0 --group=0 --mtime=@0 -C "$w" -cf "$out" manifest.json "$c.json" "$d/layer.tar"
echo "$out: $full ($(stat -c %s "$out") bytes)"

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# From a bare Debian 12 to a Kubernetes that up.sh can start: packages, build, images. Does nothing where all is there.
# About 6 minutes on two cores, and 2 GiB below ROOT.
set -euo pipefail
H=$(dirname "$(realpath "$0")"); export ROOT=${ROOT:-/opt/k8s}
need="golang-1.19-go golang-1.19-src dpkg-dev gcc libc6-dev etcd-server etcd-client containerd runc containernetworking-plugins
  busybox-static iptables conntrack ipset iproute2 openssl bc"
missing=$(for p in $need; do dpkg -s "$p" >/dev/null 2>&1 || echo "$p"; done)
[ -z "$missing" ] || { apt-get update -q; DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing; }
mkdir -p $ROOT/bin $ROOT/src
exec 9> $ROOT/lock; flock 9     # two clones at once
[ -x $ROOT/bin/kubectl ] || (cd $ROOT/src; apt-get download kubernetes-client; dpkg-deb -x kubernetes-client_*.deb kubectl; cp kubectl/usr/bin/kubectl $ROOT/bin/)
for c in kube-controller-manager kube-scheduler kubelet kube-proxy; do [ -x $ROOT/bin/$c ] || todo="${todo:-} $c"; done
[ -z "${todo:-}" ] || $H/build.sh $todo
if [ ! -x $ROOT/bin/kube-apiserver ]; then   # with discovery.k8s.io/v1
  [ -d $ROOT/src/k8s-1.20 ] || $H/build.sh kube-proxy
  $H/patch-discovery-v1.sh
  SRC=$ROOT/src/k8s-1.20-dv1 GOPATH=$ROOT/gopath-dv1 $H/build.sh kube-apiserver
fi
[ -f $ROOT/images/pause.tar ] && [ -f $ROOT/images/busybox.tar ] || $H/mkbase.sh

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# up.sh [NODES=1]: etcd, kube-apiserver, controller-manager and scheduler in netns $LAB-cp, and NODES nodes (containerd, kubelet,
# kube-proxy), each in its own net, mount, pid, uts and ipc namespaces, joined by a bridge in netns $LAB-sw. Nothing is set up in the
# host's own network. Again: starts what has died. TAINTS_n<i>=key=value:effect: what node i's kubelet registers with.
set -euo pipefail
H=$(dirname "$(realpath "$0")"); . $H/env.sh; export LAB ROOT RUN ETCDDIR GATES
n=${1:-1}; T0=$(date +%s.%N); el() { printf '%6.1f s  %s\n' "$(echo "$(date +%s.%N) - $T0" | bc)" "$*"; }
mkdir -p $RUN $LOG $PIDS $ETCDDIR; chmod 700 $ETCDDIR
$H/pki.sh $n
# --- network
in_ns() { local ns=$1; shift; nsenter --net=/run/netns/$LAB-$ns -- "$@"; }
port() { # ns ip
  ip netns add $LAB-$1; in_ns $1 ip link set lo up
  in_ns sw ip link add p-$1 type veth peer name eth0 netns $LAB-$1
  in_ns sw ip link set p-$1 master br0 up
  in_ns $1 ip addr add $2/24 dev eth0; in_ns $1 ip link set eth0 up; in_ns $1 ip route add default via $NODE_NET.254; }
if [ ! -e /run/netns/$LAB-sw ]; then
  ip netns add $LAB-sw; in_ns sw ip link set lo up; in_ns sw ip link add br0 type bridge; in_ns sw ip addr add $NODE_NET.254/24 dev br0; in_ns sw ip link set br0 up
  in_ns sw sysctl -qw net.bridge.bridge-nf-call-iptables=0
  port cp $CP_IP
fi
for i in $(seq 1 $n); do [ -e /run/netns/$LAB-n$i ] || port n$i $(node_ip $i); done
for i in $(seq 1 $n); do for w in cp sw $(seq -f n%g 1 $n); do [ $w = n$i ] || in_ns $w ip route replace $POD_NET.$i.0/24 via $(node_ip $i); done; done
# --- control plane
start() { # name cmd...
  local nm=$1; shift
  [ -f $PIDS/$nm ] && kill -0 $(cat $PIDS/$nm) 2>/dev/null && return 0
  setsid nsenter --net=/run/netns/$LAB-cp -- "$@" >> $LOG/$nm.log 2>&1 < /dev/null & echo $! > $PIDS/$nm; }
start etcd etcd --name lab --data-dir $ETCDDIR --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
   --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster lab=http://127.0.0.1:2380 --log-level warn --logger zap
start kube-apiserver $BIN/kube-apiserver --advertise-address=$CP_IP --bind-address=0.0.0.0 --secure-port=6443 --etcd-servers=http://127.0.0.1:2379 \
   --client-ca-file=$PKI/ca.crt --tls-cert-file=$PKI/apiserver.crt --tls-private-key-file=$PKI/apiserver.key \
   --kubelet-client-certificate=$PKI/kubelet-client.crt --kubelet-client-key=$PKI/kubelet-client.key --kubelet-preferred-address-types=InternalIP \
   --service-account-key-file=$PKI/sa.pub --service-account-signing-key-file=$PKI/sa.key --service-account-issuer=https://kubernetes.default.svc.cluster.local \
   --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true --service-cluster-ip-range=$SVC_CIDR \
   --requestheader-client-ca-file=$PKI/front-proxy-ca.crt --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
   --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
   --proxy-client-cert-file=$PKI/front-proxy-client.crt --proxy-client-key-file=$PKI/front-proxy-client.key --enable-aggregator-routing=true \
   --feature-gates=$GATES ${APISERVER_ARGS:-}
K="$H/k"
for _ in $(seq 600); do [ "$($K get --raw /readyz 2>/dev/null || true)" = ok ] && break; kill -0 $(cat $PIDS/kube-apiserver) || { tail -5 $LOG/kube-apiserver.log; exit 1; }; sleep .2; done
el "API server ready"
start kube-controller-manager $BIN/kube-controller-manager --kubeconfig=$KC/kube-controller-manager.kubeconfig --authentication-kubeconfig=$KC/kube-controller-manager.kubeconfig \
   --authorization-kubeconfig=$KC/kube-controller-manager.kubeconfig --service-account-private-key-file=$PKI/sa.key --root-ca-file=$PKI/ca.crt \
   --cluster-signing-cert-file=$PKI/ca.crt --cluster-signing-key-file=$PKI/ca.key --use-service-account-credentials=true --controllers='*,bootstrapsigner,tokencleaner' \
   --leader-elect=false --bind-address=127.0.0.1 --node-monitor-grace-period=20s --feature-gates=$GATES
start kube-scheduler $BIN/kube-scheduler --kubeconfig=$KC/kube-scheduler.kubeconfig --authentication-kubeconfig=$KC/kube-scheduler.kubeconfig \
   --authorization-kubeconfig=$KC/kube-scheduler.kubeconfig --leader-elect=false --bind-address=127.0.0.1
# kube-proxy has no kubeadm here that binds it to its role
$K create clusterrolebinding kube-proxy --clusterrole=system:node-proxier --user=system:kube-proxy >/dev/null 2>&1 || true
# --- nodes
for i in $(seq 1 $n); do
  [ -f $PIDS/n$i ] && kill -0 $(cat $PIDS/n$i) 2>/dev/null && continue
  for c in /sys/fs/cgroup/*/; do [ -f $c/cgroup.procs ] && mkdir -p $c/$LAB-n$i; done
  for f in cpus mems; do cat /sys/fs/cgroup/cpuset/cpuset.$f > /sys/fs/cgroup/cpuset/$LAB-n$i/cpuset.$f; done
  mkdir -p $RUN/n$i; taints=TAINTS_n$i; echo "${!taints:-}" > $RUN/n$i/taints
  setsid nsenter --net=/run/netns/$LAB-n$i -- unshare --mount --pid --uts --ipc --fork --kill-child --mount-proc $H/node-init.sh $i >> $LOG/n$i.log 2>&1 < /dev/null & echo $! > $PIDS/n$i
done
for i in $(seq 1 $n); do
  for _ in $(seq 300); do $K get node n$i >/dev/null 2>&1 && break; sleep .3; done
  $K patch node n$i -p "{\"spec\":{\"podCIDR\":\"$POD_NET.$i.0/24\",\"podCIDRs\":[\"$POD_NET.$i.0/24\"]}}" >/dev/null 2>&1 || true
done
for i in $(seq 1 $n); do $K wait --for=condition=Ready node/n$i --timeout=120s; done
el "all $n nodes Ready"
for _ in $(seq 100); do $K get sa default >/dev/null 2>&1 && break; sleep .2; done
el "default service account there"

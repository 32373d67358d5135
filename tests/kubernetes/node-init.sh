#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# PID 1 of a node. Runs inside its own net, mount, pid, uts and ipc namespaces (see up.sh).
set -euo pipefail
i=$1; . $(dirname "$(realpath "$0")")/env.sh
N=$RUN/n$i; ip=$(node_ip $i)
hostname n$i
# --- a /sys that shows this node's network devices, the host's cgroups, and a bpffs of its own
mkdir -p $N/cg; mount --rbind /sys/fs/cgroup $N/cg
mount -t sysfs sysfs /sys; mount --rbind $N/cg /sys/fs/cgroup; umount -R -l $N/cg
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null || true
# --- what a node owns
for d in /var/lib/kubelet /var/lib/containerd /var/lib/cni /var/lib/culvert /etc/cni /opt/cni /var/log/pods /var/log/containers /etc/kubernetes; do
  mkdir -p $N$d $d; mount --bind $N$d $d
done
mkdir -p $N/etc; printf '127.0.0.1 localhost\n%s n%s\n' $ip $i > $N/etc/hosts; : > $N/etc/resolv.conf; echo n$i > $N/etc/hostname
for f in hosts resolv.conf hostname; do mount --bind $N/etc/$f /etc/$f; done
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/netns /run/fake
# The kubelet writes a few machine-wide sysctls: files of its own instead of the machine's.
fake() { printf '%s\n' "$2" > /run/fake/${1//\//_}; mount --bind /run/fake/${1//\//_} /proc/sys/$1; }
fake vm/overcommit_memory 1; fake vm/panic_on_oom 0; fake kernel/panic 10; fake kernel/panic_on_oops 1
fake kernel/keys/root_maxkeys 1000000; fake kernel/keys/root_maxbytes 25000000
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true
mount --make-rshared /     # as systemd does; HostToContainer and Bidirectional volumes need it
# --- CNI: bridge and host-local, the plugins copied so that a DaemonSet can add its own
mkdir -p /opt/cni/bin /etc/cni/net.d; cp -n /usr/lib/cni/* /opt/cni/bin/
[ -e /etc/cni/net.d/10-bridge.conflist ] || cat > /etc/cni/net.d/10-bridge.conflist <<J
{"cniVersion":"0.4.0","name":"podnet","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"isDefaultGateway":true,"hairpinMode":true,"ipMasq":false,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"$POD_NET.$i.0/24"}]]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
J
cat > /etc/kubernetes/containerd.toml <<T
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true   # without CAP_SYS_RESOURCE no process may lower its oom_score_adj
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
T
cp $PKI/ca.crt /etc/kubernetes/ca.crt; cp $KC/node-n$i.kubeconfig /etc/kubernetes/kubelet.kubeconfig; cp $KC/kube-proxy.kubeconfig /etc/kubernetes/
cat > /etc/kubernetes/kubelet.yaml <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /$LAB-n$i
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/ca.crt}}
authorization: {mode: Webhook}
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
resolvConf: /etc/resolv.conf
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 2s
syncFrequency: 10s
featureGates: {$(echo $GATES | sed 's/=/: /g;s/,/, /g')}
Y
cat > /etc/kubernetes/kube-proxy.yaml <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /etc/kubernetes/kube-proxy.kubeconfig}
clusterCIDR: $POD_NET.0.0/16
mode: iptables
hostnameOverride: n$i
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y
# --- services, each in a cgroup (v2) of its own and started again when it ends, as systemd does
service() { # name cmd...
  local name=$1 cg=/sys/fs/cgroup/unified/$LAB-n$i/system.slice/$1.service; shift
  mkdir -p $cg
  while :; do
    (echo $BASHPID > $cg/cgroup.procs; exec "$@") >> $LOG/n$i-$name.log 2>&1 || true
    sleep 1
  done & }
service containerd containerd --config /etc/kubernetes/containerd.toml
for _ in $(seq 100); do ctr -a /run/containerd/containerd.sock version >/dev/null 2>&1 && break; sleep .1; done
for t in $IMG/pause.tar $IMG/busybox.tar; do ctr -n k8s.io images import $t >> $LOG/n$i-images.log 2>&1; done
service kube-proxy $BIN/kube-proxy --config=/etc/kubernetes/kube-proxy.yaml
export AWS_EC2_METADATA_DISABLED=true   # else the kubelet spends its first 10 s asking 169.254.169.254 for registry credentials
taints=$(cat $N/taints 2>/dev/null || true)
service kubelet $BIN/kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.kubeconfig \
   --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock ${taints:+--register-with-taints=$taints} \
   --hostname-override=n$i --node-ip=$ip --root-dir=/var/lib/kubelet --v=2
wait
sleep infinity

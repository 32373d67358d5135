# SPDX-License-Identifier: Apache-2.0
# Settings that every script here reads.
LAB=${LAB:-e2e}                         # prefix of every namespace, cgroup and state directory: two labs need two names
ROOT=${ROOT:-/opt/k8s}                  # what setup.sh builds, and all labs share
BIN=$ROOT/bin
IMG=$ROOT/images
RUN=${RUN:-$ROOT/run/$LAB}              # a real file system: containerd wants one
ETCDDIR=${ETCDDIR:-/dev/shm/$LAB-etcd}  # a tmpfs: no fsync waits
CP_IP=10.199.0.1                        # the control plane, in netns $LAB-cp
NODE_NET=10.199.0                       # node i is .1i, in netns $LAB-n<i>
POD_NET=10.244                          # of node i: 10.244.i.0/24
SVC_CIDR=10.96.0.0/16
GATES=${GATES:-EndpointSliceNodeName=true,EndpointSliceTerminatingCondition=true,BoundServiceAccountTokenVolume=true,EphemeralContainers=true}
PKI=$RUN/pki; KC=$RUN/kubeconfig; LOG=$RUN/log; PIDS=$RUN/pids
node_ip() { echo $NODE_NET.1$1; }

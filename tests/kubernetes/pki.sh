#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# pki.sh NODES: CAs, certificates and kubeconfigs under $RUN (ECDSA, about 1 s)
set -euo pipefail
. $(dirname "$(realpath "$0")")/env.sh
n=${1:-1}; mkdir -p $PKI $KC; cd $PKI; umask 077
ca() { openssl ecparam -genkey -name prime256v1 -noout -out $1.key; openssl req -x509 -new -sha256 -key $1.key -days 30 -subj "/CN=$1" -out $1.crt \
   -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature; }
crt() { # name ca subj eku [san]
  openssl ecparam -genkey -name prime256v1 -noout -out $1.key
  openssl req -new -sha256 -key $1.key -subj "$3" -out $1.csr
  printf 'basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=%s\n%s\n' "$4" "${5:+subjectAltName=$5}" > $1.ext
  openssl x509 -req -sha256 -in $1.csr -CA $2.crt -CAkey $2.key -CAcreateserial -days 30 -extfile $1.ext -out $1.crt 2>/dev/null; rm -f $1.csr $1.ext; }
kc() { # name server
  cat > $KC/$1.kubeconfig <<Y
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "$2", certificate-authority-data: $(base64 -w0 < ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 < $1.crt), client-key-data: $(base64 -w0 < $1.key)}}]
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
current-context: lab
Y
}
if [ ! -f ca.crt ]; then
  ca ca; ca front-proxy-ca
  openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null   # RS256, as in kubeadm clusters
  crt apiserver ca /CN=kube-apiserver serverAuth "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$CP_IP,IP:10.96.0.1"
  crt kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
  crt front-proxy-client front-proxy-ca /CN=front-proxy-client clientAuth
  crt admin ca /O=system:masters/CN=admin clientAuth;  kc admin https://$CP_IP:6443
  crt kube-controller-manager ca /CN=system:kube-controller-manager clientAuth; kc kube-controller-manager https://127.0.0.1:6443
  crt kube-scheduler ca /CN=system:kube-scheduler clientAuth; kc kube-scheduler https://127.0.0.1:6443
  crt kube-proxy ca /CN=system:kube-proxy clientAuth; kc kube-proxy https://$CP_IP:6443
fi
for i in $(seq 1 $n); do [ -f node-n$i.crt ] || { crt node-n$i ca "/O=system:nodes/CN=system:node:n$i" clientAuth; kc node-n$i https://$CP_IP:6443; }; done

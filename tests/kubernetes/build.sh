#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Build the server side of Debian's kubernetes source package (1.20.2) into /opt/k8s/bin.
# needs: what setup.sh installs (no network beyond the Debian archive)
# Module mode does not work on this tree (go 1.16+: "updates to go.mod needed, disabled by -mod=vendor"),
# so it is built the way upstream's makefiles did: GOPATH mode with the vendor/ tree.
set -euo pipefail
ROOT=${ROOT:-/opt/k8s}
SRC=${SRC:-$ROOT/src/k8s-1.20}
OUT=${OUT:-$ROOT/bin}
export PATH=/usr/lib/go-1.19/bin:$PATH
export GOPATH=${GOPATH:-$ROOT/gopath} GOCACHE=$ROOT/gocache GO111MODULE=off GOFLAGS= CGO_ENABLED=0
if [ ! -d $SRC ]; then
  mkdir -p $ROOT/src && cd $ROOT/src
  # the source archive beside the binary one that this machine's apt already knows
  mkdir -p $ROOT/apt/lists/partial
  grep -ls debian-archive-keyring /etc/apt/sources.list.d/*.sources | xargs -r sed 's/^Types: *deb$/Types: deb-src/; /^# /d' > $ROOT/apt/debian.sources
  sed -n 's/^deb \(.*debian\)/deb-src \1/p' /etc/apt/sources.list 2>/dev/null > $ROOT/apt/debian.list || true
  lists=$ROOT/apt/debian.sources; [ -s $lists ] || lists=$ROOT/apt/debian.list
  s="-oDir::Etc::sourcelist=$lists -oDir::Etc::sourceparts=/dev/null -oDir::State::Lists=$ROOT/apt/lists -oDir::Cache::pkgcache= -oDir::Cache::srcpkgcache="
  apt-get $s update
  apt-get $s source --download-only kubernetes=1.20.5+really1.20.2-1.1+deb12u1
  dpkg-source --no-check -x kubernetes_1.20*.dsc k8s-1.20
fi
# vendored reflect2 1.0.1 breaks map iteration on Go >= 1.18 (SIGSEGV in kube-apiserver on the first custom resource): take Debian's 1.0.2
if ! grep -q go1.18 $SRC/vendor/github.com/modern-go/reflect2/*.go; then
  (cd $ROOT/src; apt-get download golang-github-modern-go-reflect2-dev; dpkg-deb -x golang-github-modern-go-reflect2-dev_*.deb r2
   rm -f $SRC/vendor/github.com/modern-go/reflect2/*.{go,s}; cp r2/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} $SRC/vendor/github.com/modern-go/reflect2/; rm -f $SRC/vendor/github.com/modern-go/reflect2/*_test.go)
fi
mkdir -p $OUT $ROOT/tools $GOPATH/src/k8s.io
ln -sfn $SRC $GOPATH/src/k8s.io/kubernetes
cd $GOPATH/src/k8s.io/kubernetes
t() { local s=$(date +%s); "${@:2}"; echo "$1: $(( $(date +%s) - s )) s"; }
# generated OpenAPI definitions are not in the tarball for the main apiserver (the rest of zz_generated is)
if [ ! -f pkg/generated/openapi/zz_generated.openapi.go ]; then
  t openapi-gen-build nice -n 10 go build -p 2 -o $ROOT/tools/openapi-gen ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  dirs=$(find -L pkg cmd plugin vendor/k8s.io -name '*.go' ! -path 'vendor/k8s.io/code-generator/*' ! -path 'vendor/k8s.io/sample-*' ! -path '*/testdata/*' -print0 \
     | xargs -0 grep -l '^// *+k8s:openapi-gen=' | xargs -n1 dirname | LC_ALL=C sort -u | sed 's#^#k8s.io/kubernetes/#' | paste -sd,)
  t openapi-gen nice -n 10 $ROOT/tools/openapi-gen --logtostderr -i "$dirs" -p k8s.io/kubernetes/pkg/generated/openapi \
     -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r $ROOT/tools/violations.report
fi
V=k8s.io/component-base/version
LD="-s -w"
for p in k8s.io/kubernetes/vendor/k8s.io/component-base/version k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version; do
  LD="$LD -X $p.gitVersion=v1.20.2 -X $p.gitMajor=1 -X $p.gitMinor=20 -X $p.gitTreeState=clean"
done
for c in ${*:-kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy}; do
  tags=providerless; [ $c = kubelet ] && tags='dockerless providerless'   # no cloud and no docker: smaller, and kubelet starts 5-10 s sooner
  t "$c" nice -n 10 go build -p 2 -tags "$tags" -trimpath -ldflags "$LD" -o $OUT/$c ./cmd/$c
  ls -l $OUT/$c
done

#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes a second source tree whose apiserver also serves discovery.k8s.io/v1 (the EndpointSlice version modern clients use; 1.20 has
# v1beta1 only), from the same storage: v1 is a copy of v1beta1 with the one JSON field that 1.21 renamed (topology -> deprecatedTopology).
# Differences left: no endpoints[].zone and no hints.   Then: SRC=$ROOT/src/k8s-1.20-dv1 GOPATH=$ROOT/gopath-dv1 OUT=$ROOT/bin-dv1 ./build.sh kube-apiserver
set -euo pipefail; ROOT=${ROOT:-/opt/k8s}
A=$ROOT/src/k8s-1.20; B=$ROOT/src/k8s-1.20-dv1
rm -rf $B; cp -a $A $B; cd $B; rm -f pkg/generated/openapi/zz_generated.openapi.go
for d in staging/src/k8s.io/api/discovery pkg/apis/discovery; do
  cp -r $d/v1beta1 $d/v1; rm -f $d/v1/*_test.go $d/v1/*prerelease* $d/v1/BUILD
  sed -i -e 's/^package v1beta1/package v1/' -e 's#discovery/v1beta1#discovery/v1#g' -e 's/Version: "v1beta1"/Version: "v1"/' -e 's/k8s\.io\.api\.discovery\.v1beta1/k8s.io.api.discovery.v1/g' $d/v1/*
done
sed -i 's/json:"topology,omitempty"/json:"deprecatedTopology,omitempty"/' staging/src/k8s.io/api/discovery/v1/types.go
python3 - <<'P'
import re
def sub(p, *prs):
    s = open(p).read()
    for a, b in prs:
        assert a in s, (p, a)
        s = s.replace(a, b, 1)
    open(p, 'w').write(s)
sub('pkg/apis/discovery/install/install.go',
    ('"k8s.io/kubernetes/pkg/apis/discovery/v1alpha1"', 'v1 "k8s.io/kubernetes/pkg/apis/discovery/v1"\n\t"k8s.io/kubernetes/pkg/apis/discovery/v1alpha1"'),
    ('utilruntime.Must(v1beta1.AddToScheme(scheme))', 'utilruntime.Must(v1beta1.AddToScheme(scheme))\n\tutilruntime.Must(v1.AddToScheme(scheme))'),
    ('SetVersionPriority(v1beta1.SchemeGroupVersion, ', 'SetVersionPriority(v1beta1.SchemeGroupVersion, v1.SchemeGroupVersion, '))
sub('pkg/registry/discovery/rest/storage_discovery.go',
    ('discoveryv1alpha1 "k8s.io/api/discovery/v1alpha1"', 'discoveryv1 "k8s.io/api/discovery/v1"\n\tdiscoveryv1alpha1 "k8s.io/api/discovery/v1alpha1"'),
    ('\treturn apiGroupInfo, true, nil', '''\tif apiResourceConfigSource.VersionEnabled(discoveryv1.SchemeGroupVersion) {
		storageMap, err := p.v1beta1Storage(apiResourceConfigSource, restOptionsGetter)
		if err != nil {
			return genericapiserver.APIGroupInfo{}, false, err
		}
		apiGroupInfo.VersionedResourcesStorageMap[discoveryv1.SchemeGroupVersion.Version] = storageMap
	}

	return apiGroupInfo, true, nil'''))
sub('pkg/controlplane/instance.go',
    ('discoveryv1beta1 "k8s.io/api/discovery/v1beta1"', 'discoveryv1 "k8s.io/api/discovery/v1"\n\tdiscoveryv1beta1 "k8s.io/api/discovery/v1beta1"'),
    ('\t\tdiscoveryv1beta1.SchemeGroupVersion,', '\t\tdiscoveryv1.SchemeGroupVersion,\n\t\tdiscoveryv1beta1.SchemeGroupVersion,'))
sub('cmd/kube-apiserver/app/aggregator.go',
    ('{Group: "discovery.k8s.io", Version: "v1beta1"}:', '{Group: "discovery.k8s.io", Version: "v1"}: {group: 16200, version: 15},\n\t{Group: "discovery.k8s.io", Version: "v1beta1"}:'))
P
grep -rn v1beta1 pkg/apis/discovery/v1 staging/src/k8s.io/api/discovery/v1 | grep -v 'v1beta1\.\|_v1beta1_' | head -20

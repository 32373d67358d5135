// SPDX-License-Identifier: Apache-2.0
//! Certificates on Kubernetes: the token says on which node the caller is, and the pods there say
//! what it may be.

use std::{path::Path, sync::Mutex};

use prometheus::Registry;
use rcgen::{CertificateParams, KeyPair};
use tonic::Code;

use super::*;
use crate::{
    ca::{Followed, kept},
    index::{Index, Reports},
    tokens::{
        Expected,
        testing::{FakeApi, status_1_20, token},
    },
};

const PODS: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: culvert-proxy-1, namespace: culvert, uid: uid-culvert-proxy-1}
spec: {nodeName: n1, serviceAccountName: culvert-proxy, containers: [{name: proxy}]}
status: {phase: Running, podIP: 10.0.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: here, namespace: shop, uid: uid-here, annotations: {culvert.io/inject: enabled}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: web}]}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: there, namespace: shop, uid: uid-there, annotations: {culvert.io/inject: enabled}}
spec: {nodeName: n2, serviceAccountName: db, containers: [{name: db}]}
status: {phase: Running, podIP: 10.0.1.1}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop, uid: uid-done, annotations: {culvert.io/inject: enabled}}
spec: {nodeName: n1, serviceAccountName: job, containers: [{name: job}]}
status: {phase: Succeeded, podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: shop, uid: uid-plain}
spec: {nodeName: n1, serviceAccountName: plain, containers: [{name: plain}]}
status: {phase: Running, podIP: 10.0.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: control, namespace: culvert, uid: uid-control, annotations: {culvert.io/inject: enabled}}
spec: {nodeName: n1, serviceAccountName: culvert-control, containers: [{name: control}]}
status: {phase: Running, podIP: 10.0.0.4}
";

const SUBJECT: &str = "system:serviceaccount:culvert:culvert-proxy";

struct Signing {
    identities: Identities,
    api: FakeApi,
    _index: Mutex<Index>,
}

fn authority(dir: &Path) -> watch::Receiver<Arc<Authority>> {
    let domain = culvert_api::identity::IdentityDomain {
        trust_domain: "cluster.local".to_owned(),
        control_namespace: "culvert".to_owned(),
    };
    let files = kept(dir, &domain).unwrap_or_else(|e| panic!("{e}"));
    let followed = Followed::open(files, domain, Duration::from_hours(24));
    followed.unwrap_or_else(|e| panic!("{e}")).authority()
}

fn csr(names: &[&str]) -> Vec<u8> {
    let key = KeyPair::generate().unwrap_or_else(|e| panic!("{e}"));
    let names = names.iter().map(|name| (*name).to_owned());
    let params = CertificateParams::new(names.collect::<Vec<_>>());
    let request = params.and_then(|params| params.serialize_request(&key));
    request.unwrap_or_else(|e| panic!("{e}")).der().to_vec()
}

impl Signing {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let api = FakeApi::default();
        let mut index = Index::new(Reports::default());
        index.reset(crate::testing::objects(PODS));
        let expected = Expected {
            audience: "culvert.io/control".to_owned(),
            namespace: "culvert".to_owned(),
            service_account: "culvert-proxy".to_owned(),
        };
        let metrics = Metrics::register(&Registry::new()).unwrap_or_else(|e| panic!("{e}"));
        let (views, client) = (index.view(), api.client());
        let authenticator = Authenticator::reviewed(client, &index, expected, metrics.clone());
        Self {
            identities: Identities {
                authority: authority(dir.path()),
                authenticator,
                views,
                metrics,
            },
            api,
            _index: Mutex::new(index),
        }
    }

    async fn asks(&self, token: &str, uid: &str, csr: Vec<u8>) -> Result<(), Code> {
        let pod_uid = uid.to_owned();
        let mut request = Request::new(CertifyRequest { pod_uid, csr });
        let value = format!("Bearer {token}").parse();
        let value = value.unwrap_or_else(|e| panic!("{e}"));
        request.metadata_mut().insert("authorization", value);
        let answer = self.identities.answer(request).await;
        answer.map(drop).map_err(|status| status.code())
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_gets_the_identities_of_its_own_live_meshed_pods_and_no_others() {
    let signing = Signing::new();
    let ours = token(SUBJECT, "culvert.io/control", 3600, "ours");
    signing
        .api
        .state()
        .tokens
        .insert(ours.clone(), status_1_20());
    let web = "web.shop.serviceaccount.identity.culvert.cluster.local";
    let db = "db.shop.serviceaccount.identity.culvert.cluster.local";
    assert_eq!(signing.asks(&ours, "uid-here", csr(&[web])).await, Ok(()));
    let denied = Err(Code::PermissionDenied);
    for uid in [
        "uid-there",
        "uid-done",
        "uid-plain",
        "uid-control",
        "uid-of-nobody",
        "",
    ] {
        assert_eq!(signing.asks(&ours, uid, csr(&[])).await, denied, "{uid}");
    }
    let forged = signing.asks(&ours, "uid-here", csr(&[db])).await;
    assert_eq!(forged, Err(Code::InvalidArgument), "another's name");
    for (why, stranger) in [
        (
            "another account",
            token(
                "system:serviceaccount:shop:web",
                "culvert.io/control",
                60,
                "",
            ),
        ),
        ("another audience", token(SUBJECT, "api", 3600, "")),
        ("expired", token(SUBJECT, "culvert.io/control", -5, "")),
        (
            "not signed by the cluster",
            token(SUBJECT, "culvert.io/control", 3600, "forged"),
        ),
        ("garbage", "garbage".to_owned()),
    ] {
        let answer = signing.asks(&stranger, "uid-here", csr(&[web])).await;
        assert_eq!(answer, Err(Code::Unauthenticated), "{why}");
    }
}

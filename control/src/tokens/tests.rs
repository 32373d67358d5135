// SPDX-License-Identifier: Apache-2.0
//! Against an API server in this process, with answers of Kubernetes 1.20 and of 1.33.

use std::{collections::BTreeSet, sync::Mutex, time::Duration};

use prometheus::Registry;
use serde_json::{Value, json};
use tonic::Code;

use super::{
    testing::{FakeApi, status_1_20, status_1_33, token},
    *,
};
use crate::index::{Index, Reports};

const SUBJECT: &str = "system:serviceaccount:culvert:culvert-proxy";
const AUDIENCE: &str = "culvert.io/control";

struct Cluster {
    api: FakeApi,
    index: Mutex<Index>,
    authenticator: Authenticator,
    registry: Registry,
}

fn pod(name: &str, node: &str, account: &str, phase: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: culvert, uid: uid-{name}}}\n\
         spec: {{nodeName: '{node}', serviceAccountName: {account}, containers: [{{name: proxy}}]}}\n\
         status: {{phase: {phase}, podIP: 10.0.0.9, podIPs: [{{ip: 10.0.0.9}}]}}\n"
    )
}

fn account(uid: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ServiceAccount\n\
         metadata: {{name: culvert-proxy, namespace: culvert, uid: {uid}}}\n"
    )
}

fn proxy() -> String {
    pod("culvert-proxy-1", "n1", "culvert-proxy", "Running")
}

fn good(api: &FakeApi, salt: &str, status: Value) -> String {
    let token = token(SUBJECT, AUDIENCE, 3600, salt);
    api.state().tokens.insert(token.clone(), status);
    token
}

impl Cluster {
    fn with(pods: &str) -> Self {
        let api = FakeApi::default();
        Self::of(api.client(), api, pods)
    }

    fn of(client: kube::Client, api: FakeApi, pods: &str) -> Self {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap_or_else(|e| panic!("{e}"));
        let index = Index::new(Reports::default());
        let expected = Expected {
            audience: AUDIENCE.to_owned(),
            namespace: "culvert".to_owned(),
            service_account: "culvert-proxy".to_owned(),
        };
        let authenticator = Authenticator::reviewed(client, &index, expected, metrics);
        let cluster = Self {
            api,
            index: Mutex::new(index),
            authenticator,
            registry,
        };
        cluster.reset(pods);
        cluster
    }

    fn reset(&self, pods: &str) {
        self.reset_all(&format!("{}{pods}", account("uid-account")));
    }

    fn reset_all(&self, objects: &str) {
        let mut index = self.index.lock().unwrap_or_else(|e| panic!("{e}"));
        index.reset(crate::testing::objects(objects));
    }

    async fn admit(&self, token: &str) -> Result<Caller, Code> {
        let mut request = Request::new(());
        let value = format!("Bearer {token}")
            .parse()
            .unwrap_or_else(|e| panic!("{e}"));
        request.metadata_mut().insert(TOKEN_METADATA, value);
        let caller = self.authenticator.admit(&request).await;
        caller.map_err(|status| status.code())
    }

    async fn node(&self, token: &str) -> Result<String, Code> {
        self.admit(token).await.map(|caller| caller.node.clone())
    }

    fn asked(&self) -> usize {
        self.api.state().asked
    }

    fn counted(&self) -> BTreeSet<(String, u64)> {
        self.counts("culvert_control_token_reviews_total")
    }

    fn refused(&self) -> BTreeSet<(String, u64)> {
        self.counts("culvert_control_callers_refused_total")
    }

    fn counts(&self, name: &str) -> BTreeSet<(String, u64)> {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.into_iter().flat_map(|family| family.get_metric());
        metrics
            .map(|metric| {
                let result = metric.get_label()[0].value().to_owned();
                (result, metric.get_counter().get_value() as u64)
            })
            .collect()
    }
}

async fn is_revoked(caller: &mut Caller) -> bool {
    let patience = Duration::from_millis(200);
    tokio::time::timeout(patience, caller.revoked())
        .await
        .is_ok()
}

#[test]
fn only_a_bearer_token_is_one() {
    let token = |value: &str| {
        let mut metadata = MetadataMap::new();
        let value = value.parse().unwrap_or_else(|e| panic!("{e}"));
        metadata.insert(TOKEN_METADATA, value);
        bearer(&metadata)
    };
    assert_eq!(token("Bearer secret").as_deref(), Some("secret"));
    assert_eq!(token("bearer  secret ").as_deref(), Some("secret"));
    for wrong in ["Basic secret", "secret", "Bearer"] {
        assert_eq!(token(wrong), None, "{wrong}");
    }
    assert_eq!(bearer(&MetadataMap::new()), None);
}

#[tokio::test]
async fn both_versions_of_kubernetes_tell_the_node_and_calls_share_a_review() {
    let api = FakeApi::default();
    let client = api.client_over_loopback().await;
    let cluster = Cluster::of(client, api, &proxy());
    for (asked, (version, recorded)) in [("1.20", status_1_20()), ("1.33", status_1_33())]
        .into_iter()
        .enumerate()
    {
        let token = good(&cluster.api, version, recorded);
        let calls = (0..20).map(|_| cluster.node(&token));
        for node in futures_util::future::join_all(calls).await {
            assert_eq!(node.as_deref(), Ok("n1"), "{version}");
        }
        assert_eq!(cluster.asked(), asked + 1, "{version}");
    }
    assert_eq!(cluster.counted(), [("authenticated".to_owned(), 2)].into());
    let view = cluster
        .index
        .lock()
        .map(|index| index.view().borrow().clone());
    let view = view.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cluster.authenticator.nodes(&view), ["n1"]);
}

#[tokio::test]
async fn what_the_token_says_and_what_the_pod_says_must_agree() {
    let elsewhere = Cluster::with(&pod("culvert-proxy-1", "n2", "culvert-proxy", "Running"));
    let token = good(&elsewhere.api, "1.33", status_1_33());
    assert_eq!(elsewhere.node(&token).await, Err(Code::Unauthenticated));
    let token = good(&elsewhere.api, "1.20", status_1_20());
    assert_eq!(elsewhere.node(&token).await.as_deref(), Ok("n2"));
    for (name, account, phase) in [
        ("culvert-proxy-1", "other", "Running"),
        ("culvert-proxy-1", "culvert-proxy", "Failed"),
    ] {
        let cluster = Cluster::with(&pod(name, "n1", account, phase));
        let token = good(&cluster.api, "1.20", status_1_20());
        assert_eq!(
            cluster.node(&token).await,
            Err(Code::Unauthenticated),
            "{account} {phase}"
        );
    }
    let renamed = proxy().replace("name: culvert-proxy-1", "name: other");
    let cluster = Cluster::with(&renamed);
    let token = good(&cluster.api, "1.20", status_1_20());
    assert_eq!(cluster.node(&token).await, Err(Code::Unauthenticated));
}

#[tokio::test]
async fn forged_tokens_are_refused_and_most_of_them_without_a_question() {
    let cluster = Cluster::with(&proxy());
    let hopeless = [
        "garbage".to_owned(),
        token(
            "system:serviceaccount:shop:web",
            AUDIENCE,
            3600,
            "other account",
        ),
        token(
            SUBJECT,
            "https://kubernetes.default.svc",
            3600,
            "other audience",
        ),
        token(SUBJECT, AUDIENCE, -1, "expired"),
    ];
    for token in &hopeless {
        assert_eq!(
            cluster.node(token).await,
            Err(Code::Unauthenticated),
            "{token}"
        );
    }
    assert_eq!(cluster.asked(), 0);
    let forged = token(SUBJECT, AUDIENCE, 3600, "forged");
    for _ in 0..10 {
        assert_eq!(cluster.node(&forged).await, Err(Code::Unauthenticated));
    }
    assert_eq!(cluster.asked(), 1, "what was denied is remembered");
    assert_eq!(cluster.counted(), [("denied".to_owned(), 1)].into());
    let none = cluster.authenticator.admit(&Request::new(())).await;
    assert_eq!(none.err().map(|it| it.code()), Some(Code::Unauthenticated));
    let refused = [("denied", 10), ("hopeless", 4), ("no-token", 1)];
    let refused = refused.map(|(reason, count)| (reason.to_owned(), count));
    assert_eq!(cluster.refused(), refused.into());
}

#[tokio::test]
async fn what_an_api_server_says_of_others_is_not_enough() {
    let cluster = Cluster::with(&proxy());
    let with = |pointer: &str, value: Value| {
        let mut status = status_1_33();
        let at = status
            .pointer_mut(pointer)
            .unwrap_or_else(|| panic!("{pointer}"));
        *at = value;
        status
    };
    let key = "/user/extra/authentication.kubernetes.io~1";
    for (why, status) in [
        (
            "audience",
            with("/audiences", json!(["https://kubernetes.default.svc"])),
        ),
        ("none", with("/audiences", json!(null))),
        (
            "user",
            with("/user/username", json!("system:serviceaccount:shop:web")),
        ),
        ("no pod", with(&format!("{key}pod-uid"), json!([]))),
        ("not", with("/authenticated", json!(false))),
        (
            "another node",
            with(&format!("{key}node-name"), json!(["n2"])),
        ),
        (
            "another pod",
            with(&format!("{key}pod-name"), json!(["culvert-proxy-2"])),
        ),
    ] {
        let token = good(&cluster.api, why, status);
        assert_eq!(
            cluster.node(&token).await,
            Err(Code::Unauthenticated),
            "{why}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_control_does_not_know_yet_is_waited_for_unless_the_token_names_the_node() {
    let cluster = Cluster::with("");
    let token = good(&cluster.api, "1.33", status_1_33());
    assert_eq!(cluster.node(&token).await.as_deref(), Ok("n1"));
    let token = good(&cluster.api, "1.20", status_1_20());
    let late = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.reset(&proxy());
    };
    let (node, ()) = tokio::join!(cluster.node(&token), late);
    assert_eq!(node.as_deref(), Ok("n1"));
    let early = Cluster::with("");
    let token = good(&early.api, "1.20", status_1_20());
    assert_eq!(early.node(&token).await, Err(Code::Unavailable));
}

#[tokio::test(start_paused = true)]
async fn what_was_vouched_for_counts_no_longer_than_its_pod() {
    let cluster = Cluster::with(&proxy());
    let recorded = || [("1.20", status_1_20()), ("1.33", status_1_33())];
    let tokens = recorded().map(|(version, status)| good(&cluster.api, version, status));
    for token in &tokens {
        assert_eq!(cluster.node(token).await.as_deref(), Ok("n1"));
    }
    cluster.reset("");
    for token in &tokens {
        assert_eq!(cluster.node(token).await, Err(Code::Unauthenticated));
    }
    assert_eq!(cluster.asked(), 2, "the pod was there, and is gone");
    assert_eq!(cluster.refused(), [("pod-gone".to_owned(), 2)].into());
}

/// The pod came and went before control looked.
#[tokio::test(start_paused = true)]
async fn of_a_pod_that_is_not_known_only_a_new_answer_counts() {
    let cluster = Cluster::with("");
    let token = good(&cluster.api, "1.33", status_1_33());
    let mut caller = cluster
        .admit(&token)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cluster.node(&token).await.as_deref(), Ok("n1"));
    assert_eq!(cluster.asked(), 2);
    cluster.api.state().away = true;
    assert_eq!(cluster.node(&token).await, Err(Code::Unavailable));
    cluster.api.state().away = false;
    cluster.api.state().tokens.clear();
    assert_eq!(cluster.node(&token).await, Err(Code::Unauthenticated));
    assert!(!is_revoked(&mut caller).await);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(is_revoked(&mut caller).await, "its stream ends soon");
}

#[tokio::test]
async fn a_token_ends_with_its_pod() {
    let cluster = Cluster::with(&proxy());
    let token = good(&cluster.api, "1.20", status_1_20());
    for gone in [
        "",
        &pod("culvert-proxy-1", "n1", "culvert-proxy", "Failed"),
        &pod("culvert-proxy-1", "n2", "culvert-proxy", "Running"),
    ] {
        cluster.reset(&proxy());
        let mut caller = cluster
            .admit(&token)
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        assert!(!is_revoked(&mut caller).await);
        cluster.reset(gone);
        assert!(is_revoked(&mut caller).await, "{gone}");
    }
}

async fn pass(minutes: u64) {
    tokio::time::sleep(Duration::from_secs(minutes * 60)).await;
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_what_was_good_stays_good() {
    let cluster = Cluster::with(&proxy());
    let token = good(&cluster.api, "1.20", status_1_20());
    let mut caller = cluster
        .admit(&token)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(!is_revoked(&mut caller).await);
    cluster.api.state().away = true;
    pass(10).await;
    assert!(
        !is_revoked(&mut caller).await,
        "a stream is never closed for that"
    );
    assert_eq!(cluster.node(&token).await.as_deref(), Ok("n1"));
    assert!(
        cluster
            .counted()
            .iter()
            .any(|(result, count)| result == "failed" && *count > 2)
    );
    let other = good(&cluster.api, "never reviewed", status_1_20());
    assert_eq!(cluster.node(&other).await, Err(Code::Unavailable));
    cluster.api.state().away = false;
    cluster.api.state().tokens.clear();
    pass(3).await;
    assert!(
        is_revoked(&mut caller).await,
        "it is back, and denies the token"
    );
    assert_eq!(cluster.node(&token).await, Err(Code::Unauthenticated));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_ended_leaves_its_stream_to_the_pod_and_the_service_account() {
    for now in [account("made-anew"), String::new()] {
        ended_and_then(&now).await;
    }
}

async fn ended_and_then(now: &str) {
    let cluster = Cluster::with(&proxy());
    let text = super::testing::token(SUBJECT, AUDIENCE, 30, "short");
    cluster
        .api
        .state()
        .tokens
        .insert(text.clone(), status_1_20());
    let mut caller = cluster.admit(&text).await.unwrap_or_else(|e| panic!("{e}"));
    assert!(!is_revoked(&mut caller).await);
    cluster.api.state().tokens.clear();
    pass(5).await;
    assert!(!is_revoked(&mut caller).await);
    cluster.reset_all(&format!("{now}{}", proxy()));
    pass(3).await;
    assert!(is_revoked(&mut caller).await);
}

#[tokio::test]
async fn a_caller_prints_no_token() {
    let cluster = Cluster::with(&proxy());
    let token = good(&cluster.api, "secret", status_1_20());
    let caller = cluster
        .admit(&token)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(!format!("{caller:?}").contains(&token));
}

// SPDX-License-Identifier: Apache-2.0
//! Control as its nodes see it: over TLS on loopback, with the real gRPC client.

mod cluster;
mod kubernetes;
mod recorded;
mod rotation;

use std::time::Duration;

use culvert_api::{
    grpc::v1::{self, destination::Kind as Of, watch_request, watch_response::Kind},
    policy::InboundPolicy,
};
use tokio::{io::AsyncReadExt, time::timeout};
use tonic::Code;

use self::cluster::{Cluster, VIP, account_pod, account_service, address, request};

/// The one destination that comes next.
fn service(kind: &Kind) -> &v1::Service {
    match kind {
        Kind::Destination(v1::Destination {
            kind: Some(Of::Service(service)),
            ..
        }) => service,
        other => panic!("not a service: {other:?}"),
    }
}

fn is_unknown(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Destination(v1::Destination {
            kind: Some(Of::Unknown(_)),
            ..
        })
    )
}

fn meshed(kind: &Kind) -> Vec<bool> {
    service(kind)
        .set
        .iter()
        .map(|endpoint| endpoint.meshed)
        .collect()
}

fn report(pod: &str, generation: u64, steered: bool) -> watch_request::Kind {
    watch_request::Kind::Report(v1::Report {
        pod_uid: format!("uid-{pod}"),
        netns_cookie: 7,
        generation,
        steered,
    })
}

#[tokio::test]
async fn a_snapshot_then_deltas_and_a_broken_file_changes_nothing() {
    let cluster = Cluster::start().await;
    let mut node = cluster.watch("n1").await;
    node.subscribe(VIP).await;
    assert!(is_unknown(&node.next().await));
    cluster.write("service.yaml", account_service());
    assert!(service(&node.next().await).set.is_empty());
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    assert_eq!(meshed(&node.next().await), [false]);
    cluster.write("a.yaml", "not: [a, manifest");
    cluster
        .until_metric("culvert_control_manifest_problems 1")
        .await;
    cluster.write("b.yaml", &account_pod("b", "n2", "10.0.0.2"));
    let delta = node.next().await;
    assert_eq!(service(&delta).set[0].pod, "b");
    assert!(
        service(&delta).removed.is_empty(),
        "the last good content stays: {delta:?}"
    );
    cluster.write(
        "a.yaml",
        &account_pod("a", "n1", "10.0.0.1").replace("'True'", "'False'"),
    );
    let delta = node.next().await;
    assert_eq!(service(&delta).removed, [address("10.0.0.1:8080")]);
    assert!(!service(&delta).snapshot);
    cluster.stop().await;
}

#[tokio::test]
async fn a_report_reaches_the_other_node_before_it_is_answered() {
    let cluster = Cluster::start().await;
    cluster.write("service.yaml", account_service());
    let (mut near, mut far) = (cluster.watch("n1").await, cluster.watch("n2").await);
    far.subscribe(VIP).await;
    far.next().await;
    near.send(report("a", 1, true)).await;
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    // The report came before the pod's object, and both may come as one change.
    while meshed(&far.next_unacknowledged().await) != [true] {
        far.acknowledge().await;
    }
    near.nothing_within(Duration::from_millis(300)).await;
    far.acknowledge().await;
    let Kind::Reported(reported) = near.next().await else {
        panic!("not answered");
    };
    assert_eq!(
        (reported.pod_uid.as_str(), reported.generation),
        ("uid-a", 1)
    );
    drop(near);
    let mut late = cluster.watch("n2").await;
    late.subscribe(VIP).await;
    assert_eq!(
        meshed(&late.next().await),
        [true],
        "a report outlives its stream"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_whose_object_is_gone_can_be_withdrawn() {
    let cluster = Cluster::start().await;
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    let mut node = cluster.watch("n1").await;
    node.send(report("a", 1, true)).await;
    assert!(matches!(node.next().await, Kind::Reported(_)));
    node.subscribe("10.0.0.1:1").await;
    assert!(!is_unknown(&node.next().await));
    cluster.remove("a.yaml");
    assert!(is_unknown(&node.next().await));
    node.send(report("a", 2, false)).await;
    assert!(matches!(node.next().await, Kind::Reported(_)));
    cluster.stop().await;
}

#[tokio::test]
async fn reports_outlive_control() {
    let cluster = Cluster::start().await;
    cluster.write("service.yaml", account_service());
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    let mut node = cluster.watch("n1").await;
    node.send(report("a", 1, true)).await;
    assert!(matches!(node.next().await, Kind::Reported(_)));
    let cluster = cluster.restart().await;
    let mut node = cluster.watch("n2").await;
    node.subscribe(VIP).await;
    assert_eq!(meshed(&node.next().await), [true]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_acknowledge_delays_five_seconds_at_most() {
    let cluster = Cluster::start().await;
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    let (mut near, mut far) = (cluster.watch("n1").await, cluster.watch("n2").await);
    far.subscribe("10.0.0.1:1").await;
    while is_unknown(&far.next().await) {}
    near.send(report("a", 1, true)).await;
    far.next_unacknowledged().await;
    near.nothing_within(Duration::from_secs(3)).await;
    assert!(matches!(near.next().await, Kind::Reported(_)));
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_that_comes_late_is_told_before_a_report_is_answered() {
    let cluster = Cluster::start().await;
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    cluster.write("b.yaml", &account_pod("b", "n2", "10.0.0.2"));
    let cluster = cluster.restart().await;
    let mut near = cluster.watch("n1").await;
    near.send(report("a", 1, true)).await;
    near.nothing_within(Duration::from_secs(1)).await;
    let mut far = cluster.watch("n2").await;
    far.subscribe("10.0.0.1:1").await;
    far.next_unacknowledged().await;
    near.nothing_within(Duration::from_secs(1)).await;
    far.acknowledge().await;
    // Sooner than patience ends.
    let answer = timeout(Duration::from_secs(2), near.next()).await;
    assert!(matches!(answer, Ok(Kind::Reported(_))), "{answer:?}");
    drop(far);
    near.send(report("a", 2, true)).await;
    near.nothing_within(Duration::from_secs(3)).await;
    assert!(
        matches!(near.next().await, Kind::Reported(_)),
        "it never came"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn policies_follow_the_annotations_of_the_nodes_own_pods() {
    let cluster = Cluster::start().await;
    let (mut own, mut other) = (cluster.watch("n1").await, cluster.watch("n2").await);
    for node in [&mut own, &mut other] {
        let pod_uid = "uid-a".to_owned();
        let subscribe = v1::SubscribePolicy { pod_uid };
        node.send(watch_request::Kind::SubscribePolicy(subscribe))
            .await;
    }
    let pod = account_pod("a", "n1", "10.0.0.1");
    cluster.write("a.yaml", &pod);
    let strict = |kind: Kind| match kind {
        Kind::Policy(policy) => InboundPolicy::from(&policy).requires_identity(),
        other => panic!("not a policy: {other:?}"),
    };
    assert!(!strict(own.next().await));
    let annotated = "annotations: {culvert.io/default-inbound-policy: all-authenticated, ";
    cluster.write("a.yaml", &pod.replace("annotations: {", annotated));
    assert!(strict(own.next().await));
    other.send(report("a", 1, true)).await;
    other.nothing_within(Duration::from_millis(300)).await;
    cluster
        .until_metric("culvert_control_reports_total{result=\"denied\"} 1")
        .await;
    cluster.stop().await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let cluster = Cluster::start().await;
    let hello = |newest, oldest, node: &str| {
        let node = node.to_owned();
        v1::Hello {
            newest_version: newest,
            oldest_version: oldest,
            node,
        }
    };
    let refused = async |token: &str, hello: v1::Hello| {
        let status = cluster.refused(token, hello).await;
        (status.code(), status.message().to_owned())
    };
    assert_eq!(
        refused("wrong", hello(1, 1, "n1")).await.0,
        Code::Unauthenticated
    );
    assert_eq!(
        refused("token-n1", hello(1, 1, "n2")).await.0,
        Code::PermissionDenied
    );
    let (code, text) = refused("token-n1", hello(9, 8, "n1")).await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("8–9") && text.contains("1–1"), "{text}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_token_that_is_taken_away_ends_the_stream() {
    let cluster = Cluster::start().await;
    let mut node = cluster.watch("n1").await;
    cluster.tokens(&["n2"]);
    assert_eq!(node.ended().await, Code::Unauthenticated);
    cluster.watch("n2").await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_has_no_more_subscriptions_than_it_may() {
    let cluster = Cluster::start().await;
    let mut node = cluster.watch("n1").await;
    for host in 0..=cluster::MAX_SUBSCRIPTIONS {
        node.subscribe(&format!("10.1.0.{host}:80")).await;
    }
    for _ in 0..cluster::MAX_SUBSCRIPTIONS {
        assert!(is_unknown(&node.next().await));
    }
    cluster
        .until_metric("culvert_control_subscriptions_refused_total 1")
        .await;
    node.nothing_within(Duration::from_millis(100)).await;
    drop(node);
    cluster
        .until_metric("culvert_control_subscriptions 0")
        .await;
    cluster.stop().await;
}

#[tokio::test]
async fn certificates_are_for_live_pods_of_the_calling_node() {
    let cluster = Cluster::start().await;
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    cluster.write("b.yaml", &account_pod("b", "n2", "10.0.0.2"));
    cluster.write(
        "c.yaml",
        &account_pod("c", "n1", "10.0.0.3").replace("Running", "Failed"),
    );
    let certified = cluster.certify("n1", "uid-a", request(&[])).await;
    let certified = certified.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(certified.chain.len(), 2);
    assert_eq!(certified.not_after - certified.not_before, 24 * 3600 + 20);
    cluster::verify(&cluster, &certified.chain);
    let code = async |node: &str, uid: &str, csr: Vec<u8>| {
        let refused = cluster.certify(node, uid, csr).await;
        refused.map(|_| ()).map_err(|status| status.code())
    };
    let denied = Err(Code::PermissionDenied);
    assert_eq!(
        code("n1", "uid-b", request(&[])).await,
        denied,
        "another node's pod"
    );
    assert_eq!(
        code("n1", "uid-c", request(&[])).await,
        denied,
        "a pod that failed"
    );
    assert_eq!(
        code("n1", "uid-x", request(&[])).await,
        denied,
        "nobody's uid"
    );
    let spiffe = "spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(code("n1", "uid-a", request(&[spiffe])).await, Ok(()));
    let other = request(&["spiffe://cluster.local/ns/shop/sa/db"]);
    assert_eq!(code("n1", "uid-a", other).await, Err(Code::InvalidArgument));
    assert_eq!(
        code("n1", "uid-a", vec![1, 2]).await,
        Err(Code::InvalidArgument)
    );
    assert_eq!(
        code("wrong", "uid-a", request(&[])).await,
        Err(Code::Unauthenticated)
    );
    cluster
        .until_metric("culvert_control_certify_total{result=\"denied\"} 3")
        .await;
    cluster.stop().await;
}

#[tokio::test]
async fn control_waits_for_its_manifests_and_stops_meanwhile() {
    let cluster = Cluster::without_manifests().await;
    let (status, body) = cluster.admin("/ready").await;
    assert_eq!((status, body.as_str()), (503, "waiting for manifests\n"));
    cluster.make_manifests();
    let mut node = cluster.watch("n1").await;
    node.subscribe(VIP).await;
    assert!(is_unknown(&node.next().await));
    assert_eq!(cluster.admin("/ready").await.0, 200);
    cluster.stop().await;
    Cluster::without_manifests().await.stop().await;
}

#[tokio::test]
async fn stopping_ends_streams_and_bad_peers_harm_nobody() {
    let cluster = Cluster::start().await;
    let _silent = cluster.connect().await;
    cluster.babble().await;
    cluster
        .until_metric("culvert_control_handshakes_total{result=\"failed\"} 1")
        .await;
    let mut node = cluster.watch("n1").await;
    let (code, ()) = tokio::join!(node.ended(), cluster.stop());
    assert_eq!(code, Code::Unavailable);
}

#[tokio::test]
async fn the_serving_certificate_is_renewed_without_a_restart() {
    let cluster = Cluster::with_lifetime(Duration::from_secs(5)).await;
    let mut node = cluster.watch("n1").await;
    let first = cluster.serving_certificate().await;
    cluster::eventually(async || cluster.serving_certificate().await != first).await;
    node.subscribe(VIP).await;
    assert!(is_unknown(&node.next().await), "the open stream goes on");
    cluster.stop().await;
}

#[tokio::test]
async fn silent_peers_of_one_address_lock_nobody_else_out() {
    let cluster = Cluster::start().await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(cluster.connect().await);
    }
    cluster
        .until_metric("culvert_control_handshakes_total{result=\"refused\"} 284")
        .await;
    assert!(!cluster.admits([127, 0, 0, 1]).await);
    assert!(cluster.admits([127, 0, 0, 2]).await);
    drop(silent);
    cluster.stop().await;
}

#[tokio::test]
async fn who_does_not_prove_to_be_a_node_is_hung_up_on() {
    let cluster = Cluster::start().await;
    let mut node = cluster.watch("n1").await;
    let mut silent = cluster.handshake().await;
    let mut said = Vec::new();
    // An end without a farewell is an end too.
    let ended = timeout(Duration::from_secs(15), silent.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "still open");
    node.subscribe(VIP).await;
    assert!(is_unknown(&node.next().await), "a node stays");
    cluster.stop().await;
}

#[tokio::test]
async fn a_proxy_whose_clock_stepped_back_is_answered_when_the_one_before_it_is_gone() {
    let cluster = Cluster::start().await;
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    let mut before = cluster.watch("n1").await;
    before.send(report("a", 9, true)).await;
    assert!(matches!(before.next().await, Kind::Reported(_)));
    let mut after = cluster.watch("n1").await;
    after.send(report("a", 5, false)).await;
    cluster
        .until_metric("culvert_control_reports_total{result=\"stale\"} 1")
        .await;
    drop(before);
    let Kind::Reported(reported) = after.next().await else {
        panic!("not answered");
    };
    assert_eq!(reported.generation, 5);
    cluster.stop().await;
}

// SPDX-License-Identifier: Apache-2.0
//! What replicas of control say of their nodes to each other.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Ground, follower, report, reported};
use crate::cluster::{Cluster, Node};

/// What a node is waited for, and no longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a replica takes at most to hear from another where its nodes are.
const HEARD: Duration = Duration::from_millis(2500);

/// `printf n1 | sha256sum`
const N1: &str = "676b8bb84ce7";

/// A Lease as an earlier release writes it, which says nothing of nodes.
fn earlier(known: Option<&str>) -> Value {
    json!({
        "metadata": {
            "name": "culvert-control-r9", "namespace": "culvert",
            "labels": {"culvert.io/lease": "control-replica"},
            "annotations": known.map(|known| json!({"culvert.io/known": known})),
        },
        "spec": {"holderIdentity": "r9", "renewTime": "2026-01-01T00:00:00.000000Z"},
    })
}

/// Until then nodes that have not come since the start are waited for wherever they are.
async fn settle() {
    tokio::time::sleep(PATIENCE + Duration::from_millis(100)).await;
}

/// Two replicas that know of each other, with the node n2 at the second one.
async fn two(ground: &Ground) -> (Cluster, Cluster, Node, Node) {
    let (first, second) = (ground.replica("r1").await, ground.replica("r2").await);
    first.until_metric("culvert_control_replicas 2").await;
    second.until_metric("culvert_control_replicas 2").await;
    let (peer, meshed) = follower(&second, "n2").await;
    assert!(!meshed);
    let (own, _) = follower(&first, "n1").await;
    (first, second, own, peer)
}

async fn laggards(replica: &Cluster, count: usize) {
    let line = format!("culvert_control_laggards_total {count}");
    replica.until_metric(&line).await;
}

#[tokio::test]
async fn a_report_waits_for_the_nodes_of_the_other_replica() {
    let ground = Ground::new().await;
    let (first, second, mut own, mut peer) = two(&ground).await;
    settle().await;
    own.send(report("a", 5, true)).await;
    let news = peer.next_unacknowledged().await;
    assert_eq!(crate::meshed(&news), [true]);
    assert_eq!(crate::meshed(&own.next().await), [true]);
    own.nothing_within(Duration::from_secs(1)).await;
    peer.acknowledge().await;
    assert_eq!(reported(&mut own).await, 5);
    laggards(&first, 0).await;
    second.stop().await;
    first.until_metric("culvert_control_replicas 1").await;
    // Nobody has n2, which may still dial what was so before.
    own.send(report("a", 6, false)).await;
    assert_eq!(crate::meshed(&own.next().await), [false]);
    own.nothing_within(Duration::from_secs(2)).await;
    let (_peer, meshed) = follower(&first, "n2").await;
    assert!(!meshed);
    assert_eq!(reported(&mut own).await, 6);
    laggards(&first, 0).await;
    first.stop().await;
}

#[tokio::test]
async fn a_report_waits_for_a_node_whose_stream_to_the_other_replica_broke() {
    let ground = Ground::new().await;
    let (first, second, mut own, peer) = two(&ground).await;
    settle().await;
    drop(peer);
    own.send(report("a", 5, true)).await;
    assert_eq!(crate::meshed(&own.next().await), [true]);
    own.nothing_within(HEARD).await;
    let (_peer, meshed) = follower(&second, "n2").await;
    assert!(meshed);
    assert_eq!(reported(&mut own).await, 5);
    laggards(&first, 0).await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn a_node_that_moved_to_another_replica_delays_no_report() {
    let ground = Ground::new().await;
    let (first, second, mut own, peer) = two(&ground).await;
    drop(peer);
    let (peer, _) = follower(&first, "n2").await;
    drop(peer);
    let (mut peer, _) = follower(&second, "n2").await;
    let begun = Instant::now();
    own.send(report("a", 5, true)).await;
    assert_eq!(crate::meshed(&peer.next().await), [true]);
    assert_eq!(reported(&mut own).await, 5);
    assert!(begun.elapsed() < HEARD, "{:?}", begun.elapsed());
    laggards(&first, 0).await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_acknowledge_at_the_other_replica_is_counted() {
    let ground = Ground::new().await;
    let (first, second, mut own, mut peer) = two(&ground).await;
    let begun = Instant::now();
    own.send(report("a", 5, true)).await;
    let news = peer.next_unacknowledged().await;
    assert_eq!(crate::meshed(&news), [true]);
    assert_eq!(reported(&mut own).await, 5);
    assert!(begun.elapsed() >= PATIENCE, "{:?}", begun.elapsed());
    laggards(&first, 1).await;
    peer.acknowledge().await;
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn a_replica_that_says_nothing_is_waited_for_no_longer_than_a_node() {
    let ground = Ground::new().await;
    ground.server.put("leases", earlier(None));
    let replica = ground.replica("r1").await;
    let (mut peer, _) = follower(&replica, "n2").await;
    let mut own = replica.watch("n1").await;
    let begun = Instant::now();
    own.send(report("a", 5, true)).await;
    assert_eq!(crate::meshed(&peer.next().await), [true]);
    assert_eq!(reported(&mut own).await, 5);
    let waited = begun.elapsed();
    assert!(waited >= PATIENCE, "{waited:?}");
    laggards(&replica, 1).await;
    replica.stop().await;
}

/// In a rolling update of control, while the nodes go from the old replicas to the new ones.
#[tokio::test]
async fn a_replica_of_an_earlier_release_may_have_any_node() {
    let ground = Ground::new().await;
    ground.server.put("leases", earlier(Some("1000000")));
    let replica = ground.replica("r1").await;
    let (mut own, _) = follower(&replica, "n1").await;
    settle().await;
    let begun = Instant::now();
    own.send(report("a", 5, true)).await;
    assert_eq!(reported(&mut own).await, 5);
    assert!(begun.elapsed() < HEARD, "it says that its nodes know");
    ground
        .server
        .delete("leases", "culvert", "culvert-control-r9");
    replica.until_metric("culvert_control_replicas 1").await;
    own.send(report("a", 6, false)).await;
    assert_eq!(crate::meshed(&own.next().await), [false]);
    own.nothing_within(HEARD).await;
    let (_peer, meshed) = follower(&replica, "n2").await;
    assert!(!meshed);
    assert_eq!(reported(&mut own).await, 6);
    laggards(&replica, 0).await;
    replica.stop().await;
}

/// Replicas of an earlier release take it for gone.
#[tokio::test]
async fn a_replica_that_leaves_says_which_nodes_it_had() {
    let ground = Ground::new().await;
    let replica = ground.replica("r1").await;
    let (_own, _) = follower(&replica, "n1").await;
    replica.stop().await;
    let lease = ground.server.get("leases", "culvert", "culvert-control-r1");
    let lease = lease.unwrap_or_else(|| panic!("no Lease"));
    let metadata = &lease["metadata"];
    let label = &metadata["labels"]["culvert.io/lease"];
    assert_eq!(label, "control-replica-left");
    let annotations = &metadata["annotations"];
    assert_eq!(annotations["culvert.io/nodes"], "");
    assert_eq!(annotations["culvert.io/lost-nodes"], N1);
    assert_eq!(metadata["ownerReferences"], json!([]));
}

/// How long a report takes at the only replica, which began after `lease` was written, as long as
/// n1 is at nobody.
async fn waited_after(mut lease: Value, label: &str, nodes: &str) -> Duration {
    let ground = Ground::new().await;
    lease["metadata"]["labels"]["culvert.io/lease"] = json!(label);
    lease["metadata"]["annotations"] = json!({"culvert.io/nodes": "", nodes: N1});
    ground.server.put("leases", lease);
    let replica = ground.replica("r9").await;
    let (mut peer, _) = follower(&replica, "n2").await;
    settle().await;
    let pod = super::pod("b", "shop", "n2", "web", "10.0.0.2");
    ground.server.put("pods", pod);
    let begun = Instant::now();
    peer.send(report("b", 5, true)).await;
    assert_eq!(reported(&mut peer).await, 5);
    let waited = begun.elapsed();
    replica.stop().await;
    waited
}

/// An earlier run of the replica itself crashed, or another one left, or is not known to have had
/// the node.
#[tokio::test]
async fn a_replica_that_begins_knows_whom_those_before_it_had() {
    let own = earlier(None);
    let mut other = own.clone();
    other["metadata"]["name"] = json!("culvert-control-r8");
    let (crashed, left, none) = tokio::join!(
        waited_after(own.clone(), "control-replica", "culvert.io/nodes"),
        waited_after(other, "control-replica-left", "culvert.io/lost-nodes"),
        waited_after(own, "control-replica", "of-somebody-else"),
    );
    assert!(crashed >= PATIENCE, "{crashed:?}");
    assert!(left >= PATIENCE, "{left:?}");
    assert!(none < HEARD, "{none:?}");
}

// SPDX-License-Identifier: Apache-2.0

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use prometheus::Registry;

use super::*;
use crate::kubernetes::nodes::NodeId;

const SECOND: Duration = Duration::from_secs(1);

/// A Lease of an earlier release, which says nothing of nodes.
fn lease(name: &str, renewed: i64, known: &str) -> Lease {
    let renewed = Timestamp::from_second(renewed).unwrap_or_else(|e| panic!("{e}"));
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            annotations: Some([(KNOWN.to_owned(), known.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            renew_time: Some(MicroTime(renewed)),
            ..LeaseSpec::default()
        }),
    }
}

fn ids(names: &[&str]) -> std::collections::BTreeSet<NodeId> {
    names.iter().map(|name| NodeId::of(name)).collect()
}

fn listing(name: &str, renewed: i64, present: &[&str], lost: &[&str]) -> Lease {
    let mut lease = lease(name, renewed, "1");
    let nodes = Nodes {
        present: ids(present),
        lost: ids(lost),
    };
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.extend(nodes.annotations());
    lease
}

fn left(name: &str, renewed: i64, lost: &[&str]) -> Lease {
    let mut lease = listing(name, renewed, &[], lost);
    lease.metadata.labels = Some([(LABEL.to_owned(), LEFT.to_owned())].into());
    lease
}

fn replicas() -> (Replicas, Others) {
    let metrics = Metrics::register(&Registry::new()).unwrap_or_else(|e| panic!("{e}"));
    Replicas::new("own".to_owned(), metrics)
}

fn behind(others: &Others, version: u64) -> usize {
    others.elsewhere.borrow().behind(version)
}

fn has(others: &Others, node: &str) -> bool {
    others.elsewhere.borrow().has(NodeId::of(node))
}

fn lost(others: &Others, node: &str) -> Option<Instant> {
    others.elsewhere.borrow().lost(NodeId::of(node))
}

#[tokio::test(start_paused = true)]
async fn the_others_say_what_their_nodes_know() {
    let (mut replicas, others) = replicas();
    let begin = Instant::now();
    assert_eq!(behind(&others, 7), 0, "there are no others");
    let said = [("own", "1"), ("a", "7"), ("b", "6"), ("c", "nothing")];
    let leases = said.map(|(name, known)| lease(name, 1, known));
    replicas.take(leases.into(), begin);
    assert_eq!(behind(&others, 7), 2);
    replicas.take(vec![lease("a", 1, "7"), lease("b", 2, "8")], begin);
    assert_eq!(behind(&others, 7), 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_renew_is_gone() {
    let (mut replicas, others) = replicas();
    let begin = Instant::now();
    replicas.take(vec![lease("a", 1, "1")], begin);
    replicas.take(vec![lease("a", 1, "2")], begin + LIFETIME);
    assert_eq!(behind(&others, 9), 1);
    let late = begin + LIFETIME + SECOND;
    replicas.take(vec![lease("a", 1, "2")], late);
    assert_eq!(behind(&others, 9), 0, "it said a thing and renewed nothing");
    replicas.take(vec![lease("a", 2, "2")], late);
    assert_eq!(behind(&others, 9), 1);
}

/// Nobody can renew anything while the API server is away.
#[tokio::test(start_paused = true)]
async fn the_time_without_an_api_server_does_not_count() {
    let (mut replicas, others) = replicas();
    let begin = Instant::now();
    let there = || vec![lease("a", 1, "1")];
    replicas.take(there(), begin);
    replicas.take(there(), begin + 8 * SECOND);
    replicas.missed("by order");
    let back = begin + 600 * SECOND;
    replicas.take(there(), back);
    assert_eq!(behind(&others, 9), 1);
    replicas.take(there(), back + LIFETIME - 8 * SECOND);
    assert_eq!(behind(&others, 9), 1);
    replicas.take(there(), back + LIFETIME);
    assert_eq!(behind(&others, 9), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_where_a_replica_says_and_lost_where_none_does() {
    let (mut replicas, others) = replicas();
    let begin = Instant::now();
    let both = |a: &[&str], b: &[&str]| vec![listing("a", 1, a, &[]), listing("b", 1, b, &[])];
    replicas.take(both(&["n1", "n2"], &["n3"]), begin);
    assert!(has(&others, "n1") && has(&others, "n3") && !has(&others, "n4"));
    assert_eq!(lost(&others, "n1"), None);
    let moved = begin + SECOND;
    replicas.take(both(&["n2"], &["n1", "n3"]), moved);
    assert!(has(&others, "n1") && lost(&others, "n1").is_none());
    replicas.take(both(&["n2"], &["n3"]), moved);
    assert!(!has(&others, "n1"));
    assert_eq!(lost(&others, "n1"), Some(moved));
    replicas.take(vec![listing("a", 1, &["n2"], &["n5"])], moved + SECOND);
    let gone = Some(moved + SECOND);
    assert_eq!([lost(&others, "n3"), lost(&others, "n5")], [gone, gone]);
    assert_eq!(lost(&others, "n2"), None);
    let last = listing("a", 2, &["n2"], &["n5"]);
    replicas.take(vec![last], moved + RECENT + 2 * SECOND);
    assert_eq!([lost(&others, "n3"), lost(&others, "n5")], [None, None]);
}

#[tokio::test(start_paused = true)]
async fn who_left_is_not_waited_for_but_its_nodes_are() {
    let (mut replicas, others) = replicas();
    let begin = Instant::now();
    let leases = || vec![left("a", 1, &["n1"]), listing("b", 1, &["n2"], &[])];
    replicas.take(leases(), begin);
    assert_eq!(behind(&others, 1), 0);
    assert_eq!(behind(&others, 2), 1, "of b only");
    assert_eq!(lost(&others, "n1"), Some(begin), "also by a newcomer");
    replicas.take(leases(), begin + RECENT);
    assert!(!replicas.seen.values().any(Seen::is_over));
    replicas.take(leases(), begin + RECENT + SECOND);
    let over = replicas.seen.iter().filter(|(_, seen)| seen.is_over());
    let over: Vec<_> = over.map(|(name, _)| name.as_str()).collect();
    assert_eq!(over, ["a"]);
    assert_eq!(lost(&others, "n1"), None);
}

#[tokio::test(start_paused = true)]
async fn the_nodes_of_a_replica_that_fell_silent_are_not_lost_just_now() {
    let (mut replicas, others) = replicas();
    let begin = Instant::now();
    let there = || vec![listing("a", 1, &["n1"], &[])];
    replicas.take(there(), begin);
    replicas.take(there(), begin + LIFETIME + SECOND);
    assert!(!has(&others, "n1") && lost(&others, "n1").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_replica_knows_the_nodes_of_its_run_before() {
    let (mut replicas, others) = replicas();
    let begin = Instant::now();
    let own = listing("own", 1, &["n1"], &["n2"]);
    replicas.take(vec![own.clone()], begin);
    assert_eq!([behind(&others, 9), usize::from(others.any())], [0, 0]);
    assert!(!has(&others, "n1"));
    for node in ["n1", "n2"] {
        assert_eq!(lost(&others, node), Some(begin));
    }
    let own = listing("own", 2, &["n3"], &[]);
    replicas.take(vec![own], begin + SECOND);
    replicas.take(vec![], begin + SECOND);
    assert!(!has(&others, "n3") && lost(&others, "n3").is_none());
}

/// A rolling update of control itself.
#[tokio::test(start_paused = true)]
async fn the_nodes_of_a_replica_that_does_not_say_them_may_be_anywhere_once_it_is_gone() {
    let (mut replicas, others) = replicas();
    let begin = Instant::now();
    let new = || listing("b", 1, &["n2"], &[]);
    replicas.take(vec![lease("a", 1, "7"), new()], begin);
    assert_eq!(behind(&others, 7), 1, "of b only");
    assert!(!has(&others, "n1") && lost(&others, "n1").is_none());
    replicas.take(vec![new()], begin + SECOND);
    assert_eq!(lost(&others, "n1"), Some(begin + SECOND));
    assert!(has(&others, "n2"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_makes_it_look_soon() {
    let (replicas, others) = replicas();
    let begin = Instant::now();
    replicas.asked.next().await;
    assert_eq!(begin.elapsed(), LOOK);
    let (waiting, _) = others.wait();
    let begin = Instant::now();
    replicas.asked.next().await;
    assert_eq!(begin.elapsed(), LOOK_SOON);
    drop(waiting);
    replicas.asked.next().await;
    let begin = Instant::now();
    replicas.asked.next().await;
    assert_eq!(begin.elapsed(), LOOK);
}

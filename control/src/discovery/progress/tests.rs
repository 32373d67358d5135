// SPDX-License-Identifier: Apache-2.0

use super::*;

#[test]
fn a_version_is_known_when_its_last_message_is_acknowledged() {
    let mut progress = Progress::default();
    progress.told(1, None);
    assert!(progress.knows(1) && !progress.knows(2));
    progress.told(3, Some(7));
    progress.told(4, None);
    assert!(progress.knows(1) && !progress.knows(2) && !progress.knows(3));
    assert!(progress.knows(4), "nothing was told of it");
    assert!(progress.knows_all(1) && !progress.knows_all(4));
    progress.acknowledged(6);
    assert!(!progress.knows(3));
    progress.acknowledged(7);
    assert!(progress.knows(2) && progress.knows(3));
    assert!(progress.knows_all(4) && !progress.knows_all(5));
}

#[test]
fn who_never_acknowledges_takes_bounded_room() {
    let mut progress = Progress::default();
    for version in 1..=3000 {
        progress.told(version, Some(version));
    }
    assert_eq!(progress.pending.len(), MAX_PENDING);
    assert!((1..=3000).all(|version| !progress.knows(version)));
    progress.acknowledged(3000);
    assert!((1..=3000).all(|version| progress.knows(version)));
}

/// A stream of a node that knows `version`.
fn informed(streams: &Streams, node: &str, version: u64) -> Place {
    let place = streams.enter(node);
    place.told(version, None);
    place
}

/// No other replicas.
fn alone() -> watch::Receiver<Arc<Elsewhere>> {
    watch::channel(Arc::default()).1
}

/// How many don't know a version, of the dialling `nodes` and `elsewhere` (the pods of version 7).
async fn ask(
    streams: &Streams,
    version: u64,
    nodes: &[&str],
    elsewhere: &watch::Receiver<Arc<Elsewhere>>,
) -> usize {
    let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
    let wanted = Wanted {
        version,
        object: 7,
        nodes: &nodes,
        dials: &|node| node != "without-pods",
    };
    streams.known(&wanted, elsewhere.clone()).await
}

/// How many don't know version 1, and how long that took.
async fn waited_for(
    streams: &Streams,
    nodes: &[&str],
    elsewhere: &watch::Receiver<Arc<Elsewhere>>,
) -> (usize, Duration) {
    let begin = Instant::now();
    let laggards = ask(streams, 1, nodes, elsewhere).await;
    (laggards, begin.elapsed())
}

async fn waited(streams: &Streams, nodes: &[&str]) -> (usize, Duration) {
    waited_for(streams, nodes, &alone()).await
}

#[tokio::test(start_paused = true)]
async fn waits_for_all_streams_but_not_for_ever() {
    let streams = Streams::default();
    assert_eq!(waited(&streams, &[]).await, (0, Duration::ZERO));
    let _quick = informed(&streams, "a", 1);
    let slow = informed(&streams, "b", 0);
    slow.told(1, Some(1));
    assert_eq!(waited(&streams, &[]).await, (1, PATIENCE));
    drop(slow);
    assert_eq!(waited(&streams, &[]).await, (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_knows_nothing_until_its_first_answers_are_acknowledged() {
    let streams = Streams::default();
    let new = streams.enter("a");
    assert_eq!(ask(&streams, 0, &[], &alone()).await, 1);
    new.told(3, Some(5));
    assert_eq!(ask(&streams, 0, &[], &alone()).await, 1);
    new.acknowledged(5);
    assert_eq!(ask(&streams, 3, &[], &alone()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn at_the_beginning_nodes_that_have_not_come_are_waited_for() {
    let streams = Streams::default();
    let _near = informed(&streams, "a", 1);
    let quick = waited(&streams, &["a", "without-pods"]).await;
    assert_eq!(quick, (0, Duration::ZERO));
    let nodes = ["a", "b"];
    assert_eq!(waited(&streams, &nodes).await, (1, PATIENCE));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(waited(&streams, &nodes).await, (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_stream_is_waited_for_until_it_is_taken_for_down() {
    let streams = Streams::default();
    let _near = informed(&streams, "a", 1);
    let nodes = ["a", "b"];
    let breaks = informed(&streams, "b", 0);
    tokio::time::advance(2 * PATIENCE).await;
    let comes = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(breaks);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let back = streams.enter("b");
        tokio::time::sleep(Duration::from_secs(1)).await;
        back.told(1, None);
        back
    };
    let (waiting, back) = tokio::join!(waited(&streams, &nodes), comes);
    assert_eq!(waiting, (0, Duration::from_secs(3)));
    drop(back);
    assert_eq!(waited(&streams, &["a"]).await, (0, Duration::ZERO));
    assert_eq!(waited(&streams, &nodes).await, (1, PATIENCE));
    tokio::time::advance(RECENT).await;
    assert_eq!(waited(&streams, &nodes).await, (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_node_at_another_replica_is_that_ones_to_wait_for() {
    let streams = Streams::default();
    let _near = informed(&streams, "a", 1);
    drop(informed(&streams, "b", 0));
    let nodes = ["a", "b", "c"];
    let (says, elsewhere) = watch::channel(Arc::new(Elsewhere::of(7, &["b", "c"], &[])));
    let waited = waited_for(&streams, &nodes, &elsewhere).await;
    assert_eq!(waited, (0, Duration::ZERO), "b moved, c was never here");
    says.send_replace(Arc::new(Elsewhere::of(6, &["b", "c"], &[])));
    let waited = waited_for(&streams, &nodes, &elsewhere).await;
    assert_eq!(waited, (1, PATIENCE), "the replica does not say so yet");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_another_replica_lost_is_waited_for() {
    let streams = Streams::default();
    let _near = informed(&streams, "a", 1);
    tokio::time::advance(2 * PATIENCE).await;
    let nodes = ["a", "b"];
    let (says, elsewhere) = watch::channel(Arc::new(Elsewhere::of(7, &[], &["b"])));
    let waited = waited_for(&streams, &nodes, &elsewhere).await;
    assert_eq!(waited, (1, PATIENCE));
    let second = Duration::from_secs(1);
    let comes = async {
        tokio::time::sleep(second).await;
        let here = streams.enter("b");
        tokio::time::sleep(second).await;
        here.told(1, None);
        here
    };
    let asked = waited_for(&streams, &nodes, &elsewhere);
    let (waited, here) = tokio::join!(asked, comes);
    assert_eq!(waited, (0, 2 * second), "it came here");
    drop(here);
    let comes = async {
        tokio::time::sleep(second).await;
        says.send_replace(Arc::new(Elsewhere::of(7, &["b"], &[])));
    };
    let asked = waited_for(&streams, &nodes, &elsewhere);
    let (waited, ()) = tokio::join!(asked, comes);
    assert_eq!(waited, (0, second), "it came there");
}

/// It is at no replica while the last one that it was at learns the news.
#[tokio::test(start_paused = true)]
async fn a_node_between_two_replicas_is_not_forgotten() {
    let streams = Streams::default();
    let _near = informed(&streams, "a", 1);
    tokio::time::advance(2 * PATIENCE).await;
    let (says, elsewhere) = watch::channel(Arc::new(Elsewhere::of(6, &["b"], &[])));
    let leaves = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        says.send_replace(Arc::new(Elsewhere::of(7, &[], &["b"])));
    };
    let nodes = ["a", "b"];
    let asked = waited_for(&streams, &nodes, &elsewhere);
    let (waited, ()) = tokio::join!(asked, leaves);
    assert_eq!(waited, (1, PATIENCE));
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_nodes_is_what_they_acknowledged() {
    let streams = Streams::default();
    let nodes = |present: &[&str], lost: &[&str]| {
        let ids = |names: &[&str]| names.iter().map(|name| NodeId::of(name)).collect();
        Nodes {
            present: ids(present),
            lost: ids(lost),
        }
    };
    let _quick = informed(&streams, "a", 2);
    let slow = informed(&streams, "b", 0);
    slow.told(1, Some(4));
    slow.told(2, None);
    drop(informed(&streams, "c", 2));
    assert_eq!(streams.nodes(2), nodes(&["a"], &["b", "c"]));
    let begin = Instant::now();
    let acknowledges = async {
        tokio::time::sleep(2 * PATIENCE).await;
        slow.acknowledged(4);
    };
    tokio::join!(streams.all_known(2), acknowledges);
    assert_eq!(begin.elapsed(), 2 * PATIENCE, "also of what was before");
    assert_eq!(streams.nodes(2), nodes(&["a", "b"], &["c"]));
    let replaces = streams.enter("a");
    assert_eq!(
        streams.nodes(2),
        nodes(&["b"], &["a", "c"]),
        "its new proxy"
    );
    drop(replaces);
    assert_eq!(streams.nodes(2), nodes(&["a", "b"], &["c"]));
    tokio::time::advance(RECENT).await;
    assert_eq!(streams.nodes(2), nodes(&["a", "b"], &[]));
}

#[tokio::test]
async fn a_node_with_too_many_streams_loses_the_oldest() {
    let streams = Streams::default();
    let other = streams.enter("b");
    let mine: Vec<_> = (0..=MAX_STREAMS).map(|_| streams.enter("a")).collect();
    mine[0].cut.notified().await;
    for kept in mine.iter().skip(1).chain([&other]) {
        let cut = tokio::time::timeout(Duration::ZERO, kept.cut.notified()).await;
        assert!(cut.is_err());
    }
}

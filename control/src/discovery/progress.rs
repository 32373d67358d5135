// SPDX-License-Identifier: Apache-2.0
//! How far the nodes know what was changed, so that a report is answered when they do.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// How long to wait for the acknowledgements of other nodes, and for nodes that have not come yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a node is waited for after its last stream: one that is down is not to delay others.
const RECENT: Duration = Duration::from_secs(30);

/// How many streams a node may have: the proxy that serves, and those that it replaces.
const MAX_STREAMS: usize = 4;

/// How many unacknowledged changes are told apart.
const MAX_PENDING: usize = 1024;

/// How far the node at the end of one stream knows the changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// None until the node knows the answers to what it asked first: it may serve what a stream
    /// before this one told it.
    processed: Option<u64>,
    /// Versions whose messages are on their way, and the last of these messages.
    pending: VecDeque<(RangeInclusive<u64>, u64)>,
}

/// All streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    inner: Arc<Mutex<Inner>>,
    entered: watch::Sender<()>,
    ended: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    streams: BTreeMap<u64, Entry>,
    /// When the first stream of this run came.
    first: Option<Instant>,
    /// When the last streams of nodes ended.
    left: BTreeMap<String, Instant>,
}

#[derive(Debug)]
struct Entry {
    node: String,
    progress: watch::Receiver<Progress>,
    cut: Arc<Notify>,
}

/// A stream's place among all. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    streams: Streams,
    progress: watch::Sender<Progress>,
    /// Notified when newer streams of the node took its place.
    pub(super) cut: Arc<Notify>,
}

// === impl Progress ===

impl Progress {
    /// Everything up to `version` is known once `sequence` is acknowledged, or at once.
    fn told(&mut self, version: u64, sequence: Option<u64>) {
        let first = self.processed.map_or(0, |processed| processed + 1);
        self.processed = self.processed.max(Some(version));
        if let Some(sequence) = sequence {
            self.pending.push_back((first..=version, sequence));
        }
        if self.pending.len() > MAX_PENDING {
            self.merge_oldest();
        }
    }

    fn acknowledged(&mut self, sequence: u64) {
        while self
            .pending
            .front()
            .is_some_and(|(_, last)| *last <= sequence)
        {
            self.pending.pop_front();
        }
    }

    fn knows(&self, version: u64) -> bool {
        let on_its_way = self
            .pending
            .iter()
            .any(|(versions, _)| versions.contains(&version));
        self.processed >= Some(version) && !on_its_way
    }

    fn merge_oldest(&mut self) {
        let Some((oldest, _)) = self.pending.pop_front() else {
            return;
        };
        if let Some((next, _)) = self.pending.front_mut() {
            *next = *oldest.start()..=*next.end();
        }
    }
}

// === impl Streams ===

impl Streams {
    /// A place for a stream that knows nothing yet. The oldest stream of a node that has too many
    /// is cut off.
    pub(super) fn enter(&self, node: &str) -> Place {
        let progress = watch::Sender::new(Progress::default());
        let cut = Arc::new(Notify::new());
        let mut inner = self.lock();
        inner.first.get_or_insert_with(Instant::now);
        inner.last += 1;
        let id = inner.last;
        let entry = Entry {
            node: node.to_owned(),
            progress: progress.subscribe(),
            cut: Arc::clone(&cut),
        };
        inner.streams.insert(id, entry);
        inner.cut_oldest(node);
        drop(inner);
        self.entered.send_replace(());
        Place {
            id,
            streams: self.clone(),
            progress,
            cut,
        }
    }

    /// Changes when a stream ended.
    pub(super) fn ended(&self) -> watch::Receiver<()> {
        self.ended.subscribe()
    }

    /// Waits until every stream knows `version`, but not for long: also those of the nodes, of
    /// `nodes` that `dial`, which lost theirs lately or did not come since control started. Answers
    /// how many don't.
    pub(super) async fn known(
        &self,
        version: u64,
        nodes: &[&str],
        dial: impl Fn(&str) -> bool,
    ) -> usize {
        let asked = Instant::now();
        let ignorant = || {
            let (streams, absent) = self.lock().ignorant(version, nodes, asked);
            let absent = absent.into_iter().filter(|node| dial(node)).count();
            (streams, absent)
        };
        let known = self.until_known(version, &ignorant);
        match tokio::time::timeout(PATIENCE, known).await {
            Ok(()) => 0,
            Err(_) => {
                let (streams, absent) = ignorant();
                streams + absent
            }
        }
    }

    async fn until_known(&self, version: u64, ignorant: impl Fn() -> (usize, usize)) {
        let mut entered = self.entered.subscribe();
        loop {
            self.until_streams_know(version).await;
            match ignorant() {
                (0, 0) => return,
                // A stream came meanwhile.
                (_, 0) => {}
                // It fails only when these streams, which are borrowed here, are gone.
                (_, _) => drop(entered.changed().await),
            }
        }
    }

    /// Waits until each stream that there is now knows `version` or ended.
    async fn until_streams_know(&self, version: u64) {
        let all: Vec<_> = self
            .lock()
            .streams
            .values()
            .map(|at| at.progress.clone())
            .collect();
        let waiting = all.into_iter().map(|mut progress| async move {
            // An error says that the stream ended.
            let _ = progress.wait_for(|progress| progress.knows(version)).await;
        });
        join_all(waiting).await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn cut_oldest(&self, node: &str) {
        let of_node: Vec<_> = self
            .streams
            .values()
            .filter(|entry| entry.node == node)
            .collect();
        let excess = of_node.len().saturating_sub(MAX_STREAMS);
        of_node
            .iter()
            .take(excess)
            .for_each(|entry| entry.cut.notify_one());
    }

    /// How many streams don't know `version`, and which of `nodes` should be there and are not.
    fn ignorant<'a>(
        &self,
        version: u64,
        nodes: &[&'a str],
        asked: Instant,
    ) -> (usize, Vec<&'a str>) {
        let all = self.streams.values();
        let streams = all.filter(|entry| !entry.progress.borrow().knows(version));
        let present = self.streams.values().map(|entry| entry.node.as_str());
        let present: BTreeSet<_> = present.collect();
        let absent = nodes
            .iter()
            .filter(|node| !present.contains(*node) && self.is_awaited(node, asked));
        (streams.count(), absent.copied().collect())
    }

    /// A node that was not seen in this run of control may wait to connect again, at its beginning.
    fn is_awaited(&self, node: &str, asked: Instant) -> bool {
        let within = |since: Instant, time| asked.saturating_duration_since(since) <= time;
        match self.left.get(node) {
            Some(left) => within(*left, RECENT),
            None => self.first.is_some_and(|first| within(first, PATIENCE)),
        }
    }

    fn leave(&mut self, id: u64) {
        let now = Instant::now();
        self.left.retain(|_, left| now - *left <= RECENT);
        if let Some(entry) = self.streams.remove(&id) {
            self.left.insert(entry.node, now);
        }
    }
}

// === impl Place ===

impl Place {
    /// The last message that had anything of `version`, or none if there was nothing to tell. The
    /// first time it is the last answer to what the node asked first.
    pub(super) fn told(&self, version: u64, sequence: Option<u64>) {
        self.progress
            .send_modify(|progress| progress.told(version, sequence));
    }

    pub(super) fn acknowledged(&self, sequence: u64) {
        self.progress
            .send_modify(|progress| progress.acknowledged(sequence));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.lock().leave(self.id);
        self.streams.ended.send_replace(());
    }
}

#[cfg(test)]
mod tests {
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
        progress.acknowledged(6);
        assert!(!progress.knows(3));
        progress.acknowledged(7);
        assert!(progress.knows(2) && progress.knows(3));
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

    fn anywhere(_: &str) -> bool {
        true
    }

    /// A stream of a node that knows `version`.
    fn informed(streams: &Streams, node: &str, version: u64) -> Place {
        let place = streams.enter(node);
        place.told(version, None);
        place
    }

    /// How many don't know version 1, and how long that took.
    async fn waited(streams: &Streams, nodes: &[&str]) -> (usize, Duration) {
        let begin = Instant::now();
        let laggards = streams.known(1, nodes, anywhere).await;
        (laggards, begin.elapsed())
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
        assert_eq!(streams.known(0, &[], anywhere).await, 1);
        new.told(3, Some(5));
        assert_eq!(streams.known(0, &[], anywhere).await, 1);
        new.acknowledged(5);
        assert_eq!(streams.known(3, &[], anywhere).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_beginning_nodes_that_have_not_come_are_waited_for() {
        let streams = Streams::default();
        let _near = informed(&streams, "a", 1);
        let nodes = ["a", "b"];
        assert_eq!(streams.known(1, &nodes, |node| node != "b").await, 0);
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
}

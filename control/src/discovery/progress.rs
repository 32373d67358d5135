// SPDX-License-Identifier: Apache-2.0
//! How far the nodes know what was changed, so that a report is answered when they do.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::{Notify, watch};

/// How long to wait for the acknowledgements of other nodes.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many streams a node may have: the proxy that serves, and those that it replaces.
const MAX_STREAMS: usize = 4;

/// How many unacknowledged changes are told apart.
const MAX_PENDING: usize = 1024;

/// How far the node at the end of one stream knows the changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    processed: u64,
    /// Versions whose messages are on their way, and the last of these messages.
    pending: VecDeque<(RangeInclusive<u64>, u64)>,
}

/// All streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams {
    inner: Arc<Mutex<Inner>>,
    ended: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    streams: BTreeMap<u64, Entry>,
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
        let first = self.processed + 1;
        self.processed = self.processed.max(version);
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
        self.processed >= version && !on_its_way
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
    /// A place for a stream that knows what `version` knows. The oldest stream of a node that has
    /// too many is cut off.
    pub(super) fn enter(&self, node: &str, version: u64) -> Place {
        let progress = watch::Sender::new(Progress {
            processed: version,
            pending: VecDeque::new(),
        });
        let cut = Arc::new(Notify::new());
        let mut inner = self.lock();
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

    /// Waits until every stream knows `version` or ended, but not for long. Answers how many don't.
    pub(super) async fn known(&self, version: u64) -> usize {
        self.known_within(PATIENCE, version).await
    }

    async fn known_within(&self, patience: Duration, version: u64) -> usize {
        let all: Vec<_> = self
            .lock()
            .streams
            .values()
            .map(|at| at.progress.clone())
            .collect();
        let waiting = all.iter().cloned().map(|mut progress| async move {
            // An error says that the stream ended.
            progress
                .wait_for(|progress| progress.knows(version))
                .await
                .is_ok()
        });
        match tokio::time::timeout(patience, join_all(waiting)).await {
            Ok(_) => 0,
            Err(_) => all
                .iter()
                .filter(|progress| !progress.borrow().knows(version))
                .count(),
        }
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
}

// === impl Place ===

impl Place {
    /// The last message that had anything of `version`, or none if there was nothing to tell.
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
        self.streams.lock().streams.remove(&self.id);
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

    #[tokio::test]
    async fn waits_for_all_streams_but_not_for_ever() {
        let streams = Streams::default();
        assert_eq!(streams.known(1).await, 0);
        let (quick, slow) = (streams.enter("a", 0), streams.enter("b", 0));
        quick.told(1, Some(1));
        quick.acknowledged(1);
        slow.told(1, Some(1));
        let patience = Duration::from_millis(10);
        assert_eq!(streams.known_within(patience, 1).await, 1);
        drop(slow);
        assert_eq!(streams.known(1).await, 0);
    }

    #[tokio::test]
    async fn a_node_with_too_many_streams_loses_the_oldest() {
        let streams = Streams::default();
        let other = streams.enter("b", 0);
        let mine: Vec<_> = (0..=MAX_STREAMS).map(|_| streams.enter("a", 0)).collect();
        mine[0].cut.notified().await;
        for kept in mine.iter().skip(1).chain([&other]) {
            let cut = tokio::time::timeout(Duration::ZERO, kept.cut.notified()).await;
            assert!(cut.is_err());
        }
    }
}

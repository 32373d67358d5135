// SPDX-License-Identifier: Apache-2.0
//! How far the nodes know what was changed, so that a report is answered when they do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use crate::kubernetes::{Elsewhere, NodeId, Nodes, RECENT};

/// How long to wait for the acknowledgements of other nodes, for nodes that have not come yet, and
/// for other replicas.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

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
    /// How many streams the nodes have that have any.
    here: HashMap<String, usize>,
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

/// What is to be known, and by whom.
pub(super) struct Wanted<'a> {
    /// The version of the view.
    pub(super) version: u64,
    /// The version of the pod, by which other replicas say what their nodes know.
    pub(super) object: u64,
    /// The nodes that may have a proxy.
    pub(super) nodes: &'a [String],
    /// Which of them dial.
    pub(super) dials: &'a (dyn Fn(&str) -> bool + Sync),
}

/// Who does not know what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ignorant<'a> {
    /// A stream that came meanwhile.
    Stream,
    /// A node that is at no replica.
    Node(&'a str),
    /// Another replica.
    Replica,
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

    /// Also everything before `version`.
    fn knows_all(&self, version: u64) -> bool {
        let first = self.pending.front();
        let on_its_way = first.is_some_and(|(versions, _)| *versions.start() <= version);
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
        *inner.here.entry(node.to_owned()).or_default() += 1;
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

    /// Waits until it is known by every stream and by every other replica, but not for long: also
    /// by the nodes which lost their last stream lately, here or elsewhere, or did not come since
    /// control started, and are at no other replica. Answers how many don't know it.
    pub(super) async fn known(
        &self,
        wanted: &Wanted<'_>,
        mut elsewhere: watch::Receiver<Arc<Elsewhere>>,
    ) -> usize {
        let asked = Instant::now();
        let known = self.until_known(wanted, asked, &mut elsewhere);
        match timeout(PATIENCE, known).await {
            Ok(()) => 0,
            Err(_) => self.count(wanted, asked, &elsewhere.borrow()),
        }
    }

    async fn until_known(
        &self,
        wanted: &Wanted<'_>,
        asked: Instant,
        elsewhere: &mut watch::Receiver<Arc<Elsewhere>>,
    ) {
        let mut entered = self.entered.subscribe();
        loop {
            self.until_streams(|progress| progress.knows(wanted.version))
                .await;
            let now = Arc::clone(&elsewhere.borrow_and_update());
            // All at one moment: a node may be on its way from one replica to another.
            let Some(one) = self.ignorant(wanted, asked, &now) else {
                return;
            };
            // Thousands of reports may wait for a thousand nodes: all is looked at again only when
            // the one that was found is no longer in the way.
            while self.remains(one, wanted, asked, &elsewhere.borrow_and_update()) {
                // The first fails only when these streams, which are borrowed here, are gone; the
                // other where there are no replicas.
                tokio::select! {
                    changed = entered.changed() => drop(changed),
                    Ok(()) = elsewhere.changed() => {}
                }
            }
        }
    }

    /// Waits until all streams know all that there was up to `version`.
    pub(super) async fn all_known(&self, version: u64) {
        let knows = |progress: &Progress| progress.knows_all(version);
        while !self.lock().all(knows) {
            self.until_streams(knows).await;
        }
    }

    /// The nodes whose streams know all that there was up to `version`, and the others: those that
    /// don't know it yet, or lost their last stream lately.
    pub(super) fn nodes(&self, version: u64) -> Nodes {
        self.lock().nodes(version)
    }

    /// Waits until it is so of each stream that there is now, or the stream ended.
    async fn until_streams(&self, is: impl Fn(&Progress) -> bool) {
        let all: Vec<_> = self
            .lock()
            .streams
            .values()
            .map(|at| at.progress.clone())
            .collect();
        let is = &is;
        let waiting = all.into_iter().map(|mut progress| async move {
            // An error says that the stream ended.
            let _ = progress.wait_for(|progress| is(progress)).await;
        });
        join_all(waiting).await;
    }

    /// One that does not know what is wanted.
    fn ignorant<'a>(
        &self,
        wanted: &Wanted<'a>,
        asked: Instant,
        elsewhere: &Elsewhere,
    ) -> Option<Ignorant<'a>> {
        if elsewhere.behind(wanted.object) > 0 {
            return Some(Ignorant::Replica);
        }
        let (streams, absent) = self.look(wanted, asked, elsewhere);
        if streams > 0 {
            return Some(Ignorant::Stream);
        }
        let mut absent = absent.into_iter();
        absent.find(|node| (wanted.dials)(node)).map(Ignorant::Node)
    }

    fn remains(
        &self,
        ignorant: Ignorant<'_>,
        wanted: &Wanted<'_>,
        asked: Instant,
        elsewhere: &Elsewhere,
    ) -> bool {
        match ignorant {
            Ignorant::Stream => false,
            Ignorant::Node(node) => self.lock().is_absent(node, asked, elsewhere),
            Ignorant::Replica => elsewhere.behind(wanted.object) > 0,
        }
    }

    /// How many don't know what is wanted.
    fn count(&self, wanted: &Wanted<'_>, asked: Instant, elsewhere: &Elsewhere) -> usize {
        let (streams, absent) = self.look(wanted, asked, elsewhere);
        let absent = absent.into_iter().filter(|node| (wanted.dials)(node));
        streams + absent.count() + elsewhere.behind(wanted.object)
    }

    /// How many streams don't know it, and which nodes should be here or elsewhere and are not: at
    /// one moment, as nodes come and go.
    fn look<'a>(
        &self,
        wanted: &Wanted<'a>,
        asked: Instant,
        elsewhere: &Elsewhere,
    ) -> (usize, Vec<&'a str>) {
        let inner = self.lock();
        let know = inner.count(|progress| progress.knows(wanted.version));
        let nodes = wanted.nodes.iter().map(String::as_str);
        let absent = nodes.filter(|node| inner.is_absent(node, asked, elsewhere));
        (inner.streams.len() - know, absent.collect())
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

    fn count(&self, is: impl Fn(&Progress) -> bool) -> usize {
        let all = self.streams.values();
        all.filter(|entry| is(&entry.progress.borrow())).count()
    }

    fn all(&self, is: impl Fn(&Progress) -> bool) -> bool {
        self.count(is) == self.streams.len()
    }

    /// The nodes that have streams, and whether it is so of all that a node has.
    fn present(&self, is: impl Fn(&Progress) -> bool) -> BTreeMap<&str, bool> {
        let mut nodes = BTreeMap::new();
        for entry in self.streams.values() {
            *nodes.entry(entry.node.as_str()).or_insert(true) &= is(&entry.progress.borrow());
        }
        nodes
    }

    fn nodes(&self, version: u64) -> Nodes {
        let now = Instant::now();
        let here = self.present(|progress| progress.knows_all(version));
        let left = self.left.iter().filter(|(_, left)| now - **left <= RECENT);
        let left = left.map(|(node, _)| (node.as_str(), false));
        let away = left.filter(|(node, _)| !here.contains_key(node));
        let (mut present, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for (node, knows) in here.iter().map(|(node, knows)| (*node, *knows)).chain(away) {
            let of = if knows { &mut present } else { &mut lost };
            of.insert(NodeId::of(node));
        }
        Nodes { present, lost }
    }

    /// Whether a node should be here or elsewhere and is not. One that was not seen in this run of
    /// control may wait to connect again, at its beginning.
    fn is_absent(&self, node: &str, asked: Instant, elsewhere: &Elsewhere) -> bool {
        if self.here.contains_key(node) {
            return false;
        }
        let id = NodeId::of(node);
        let within = |since: Instant, time| asked.saturating_duration_since(since) <= time;
        let lost = self.left.get(node).copied().max(elsewhere.lost(id));
        let lately = lost.is_some_and(|lost| within(lost, RECENT));
        let early = self.first.is_some_and(|first| within(first, PATIENCE));
        (lately || early) && !elsewhere.has(id)
    }

    fn leave(&mut self, id: u64) {
        let now = Instant::now();
        self.left.retain(|_, left| now - *left <= RECENT);
        if let Some(entry) = self.streams.remove(&id) {
            self.here
                .entry(entry.node.clone())
                .and_modify(|count| *count -= 1);
            self.here.retain(|_, count| *count > 0);
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
mod tests;

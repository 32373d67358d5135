// SPDX-License-Identifier: Apache-2.0
//! The other replicas of control, by their Leases: who lives, and how much of Kubernetes' news all
//! nodes at its streams have acknowledged.
//!
//! A report is told to all nodes when each replica says that its nodes know the version of the pod
//! whose condition has it. A replica that says nothing is not waited for longer than a node is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{Api, api::ListParams};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::lease::{KNOWN, LIFETIME, SELECTOR};
use crate::metrics::Metrics;

/// How long to wait for the other replicas, as for nodes.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often to look at the Leases, while nobody waits and while somebody does. They are a few
/// small objects; a watch would be heard no sooner, and could be behind.
pub(super) const LOOK: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(50);

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// What each other replica that lives says that its nodes know.
#[derive(Clone, Debug)]
pub struct Others {
    known: watch::Receiver<BTreeMap<String, u64>>,
    asked: Arc<Asked>,
}

/// Who waits for the others.
#[derive(Debug, Default)]
struct Asked {
    waiting: AtomicUsize,
    begun: Notify,
}

struct Waiting<'a>(&'a Asked);

/// Follows the Leases of the replicas.
#[derive(Debug)]
pub(crate) struct Replicas {
    own: String,
    seen: BTreeMap<String, Seen>,
    known: watch::Sender<BTreeMap<String, u64>>,
    asked: Arc<Asked>,
    metrics: Metrics,
}

/// A Lease, and since when it has not been renewed. Nobody's clock is compared with another's.
#[derive(Clone, Debug)]
struct Seen {
    spec: Option<LeaseSpec>,
    known: u64,
    since: Instant,
}

// === impl Others ===

impl Others {
    /// Waits until the nodes of every other replica know the objects of `version`, but not for
    /// long. Answers how many replicas don't say so.
    pub async fn know(&self, version: u64) -> usize {
        let mut known = self.known.clone();
        let _waiting = self.asked.wait();
        let all = known.wait_for(|known| behind(known, version) == 0);
        match timeout(PATIENCE, all).await {
            // An error says that control is stopping.
            Ok(_) => 0,
            Err(_) => behind(&self.known.borrow(), version),
        }
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.known.borrow().is_empty()
    }

    /// Waits until one came, went, or said something.
    pub(super) async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

fn behind(known: &BTreeMap<String, u64>, version: u64) -> usize {
    known.values().filter(|known| **known < version).count()
}

// === impl Asked ===

impl Asked {
    fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.begun.notify_one();
        Waiting(self)
    }

    /// Waits until it is time to look again.
    async fn next(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            return sleep(LOOK_SOON).await;
        }
        // At once when somebody begins to wait.
        let _ = timeout(LOOK, self.begun.notified()).await;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Replicas ===

impl Replicas {
    pub(crate) fn new(own: String, metrics: Metrics) -> (Self, Others) {
        let (known, others) = watch::channel(BTreeMap::new());
        let asked: Arc<Asked> = Arc::default();
        let itself = Self {
            own,
            seen: BTreeMap::new(),
            known,
            asked: Arc::clone(&asked),
            metrics,
        };
        let others = Others {
            known: others,
            asked,
        };
        (itself, others)
    }

    /// For as long as the process runs. While the API server is away, what is known stays until it
    /// is too old.
    pub(crate) async fn follow(mut self, leases: Api<Lease>) {
        let params = ListParams::default().labels(SELECTOR);
        loop {
            match timeout(REQUEST, leases.list(&params)).await {
                Ok(Ok(list)) => self.take(list.items, Instant::now()),
                Ok(Err(error)) => tracing::debug!(%error, "Could not list the replicas' Leases"),
                Err(_) => tracing::debug!("No answer to a list of the replicas' Leases"),
            }
            self.publish(Instant::now());
            self.asked.next().await;
        }
    }

    fn take(&mut self, leases: Vec<Lease>, now: Instant) {
        let old = std::mem::take(&mut self.seen);
        let leases = leases.into_iter().map(|lease| {
            let name = lease.metadata.name.clone().unwrap_or_default();
            let same = old.get(&name).filter(|seen| seen.spec == lease.spec);
            let seen = Seen {
                since: same.map_or(now, |seen| seen.since),
                known: acknowledged(&lease),
                spec: lease.spec,
            };
            (name, seen)
        });
        self.seen = leases.collect();
    }

    fn publish(&self, now: Instant) {
        let lives = |seen: &Seen| now.saturating_duration_since(seen.since) <= LIFETIME;
        let others = self.seen.iter().filter(|(name, _)| **name != self.own);
        let others = others.filter(|(_, seen)| lives(seen));
        let known: BTreeMap<_, _> = others
            .map(|(name, seen)| (name.clone(), seen.known))
            .collect();
        self.metrics.set_replicas(known.len() + 1);
        self.known.send_if_modified(|held| {
            let modified = *held != known;
            if modified {
                *held = known;
            }
            modified
        });
    }
}

/// 0: nothing is said yet.
fn acknowledged(lease: &Lease) -> u64 {
    let annotations = lease.metadata.annotations.as_ref();
    let known = annotations.and_then(|annotations| annotations.get(KNOWN));
    known
        .and_then(|known| known.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
        jiff::Timestamp,
    };
    use prometheus::Registry;

    use super::*;

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

    fn replicas() -> (Replicas, Others) {
        let metrics = Metrics::register(&Registry::new()).unwrap_or_else(|e| panic!("{e}"));
        Replicas::new("own".to_owned(), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn the_others_are_waited_for_but_not_for_ever() {
        let (mut replicas, others) = replicas();
        let begin = Instant::now();
        assert_eq!(others.know(7).await, 0, "there are no others");
        let said = [("own", "1"), ("a", "7"), ("b", "6"), ("c", "nothing")];
        let leases = said.map(|(name, known)| lease(name, 1, known));
        replicas.take(leases.into(), begin);
        replicas.publish(begin);
        assert_eq!(others.know(7).await, 2);
        replicas.take(vec![lease("a", 1, "7"), lease("b", 2, "8")], begin);
        replicas.publish(begin);
        assert_eq!(others.know(7).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_renew_is_gone() {
        let (mut replicas, others) = replicas();
        let begin = Instant::now();
        replicas.take(vec![lease("a", 1, "1")], begin);
        let late = begin + LIFETIME + Duration::from_secs(1);
        replicas.take(vec![lease("a", 1, "2")], late);
        replicas.publish(begin + LIFETIME);
        assert_eq!(others.know(9).await, 1);
        replicas.publish(late);
        assert_eq!(
            others.know(9).await,
            0,
            "it said something, but renewed nothing"
        );
        replicas.take(vec![lease("a", 2, "2")], late);
        replicas.publish(late);
        assert_eq!(others.know(9).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_makes_it_look_soon() {
        let (replicas, others) = replicas();
        let begin = tokio::time::Instant::now();
        replicas.asked.next().await;
        assert_eq!(begin.elapsed(), LOOK);
        replicas.known.send_replace([("a".to_owned(), 1)].into());
        let waits = tokio::spawn(async move { others.know(2).await });
        tokio::task::yield_now().await;
        let begin = tokio::time::Instant::now();
        replicas.asked.next().await;
        assert_eq!(begin.elapsed(), LOOK_SOON);
        replicas.known.send_replace([("a".to_owned(), 2)].into());
        assert_eq!(waits.await.ok(), Some(0));
        replicas.asked.next().await;
        let begin = tokio::time::Instant::now();
        replicas.asked.next().await;
        assert_eq!(begin.elapsed(), LOOK);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Reports that could not be written, for who operates the cluster: each pod once in the log, and
//! an Event when that lasts. A strict pod that was enrolled while it ran stays open until then.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use culvert_api::workload::PodUid;
use culvert_manifests::NamespacedName;
use tokio::time::Instant;

use crate::{
    metrics::Metrics,
    notices::{Notice, Notices},
};

/// After so long there is an Event.
const LONG: Duration = Duration::from_secs(60);

/// Reports that could not be written. Clones share them.
#[derive(Clone)]
pub(super) struct Failures {
    state: Arc<Mutex<State>>,
    metrics: Metrics,
    notices: Notices,
}

#[derive(Default)]
struct State {
    since: BTreeMap<PodUid, Instant>,
    /// There was an Event, and some of them are not written yet.
    said: bool,
}

// === impl Failures ===

impl Failures {
    pub(super) fn new(metrics: Metrics, notices: Notices) -> Self {
        Self {
            state: Arc::default(),
            metrics,
            notices,
        }
    }

    /// The report of a pod could not be written.
    pub(super) fn failed(&self, uid: &PodUid, (namespace, name): &NamespacedName, error: &str) {
        self.metrics.keep_errors.inc();
        let (first, long) = self.state().failed(uid, Instant::now());
        if first {
            tracing::warn!(
                pod.namespace = namespace, pod.name = name, pod.uid = %uid, error,
                "Could not write what a node reported into its pod; it is tried again, and peers are told then"
            );
        }
        if let Some(pods) = long {
            self.notices.say(Notice::own_warning(
                "ReportsUnwritten",
                format!(
                    "For {LONG:?} what nodes reported could not be written into the status of \
                     {pods} pods, {namespace}/{name} among them: {error}. Until it is, a pod that \
                     was enrolled while it ran takes plaintext, whatever its policy, and peers \
                     send it that"
                ),
            ));
        }
    }

    /// The report of a pod is written, or no longer to be.
    pub(super) fn ended(&self, uid: &PodUid) {
        if self.state().ended(uid) {
            tracing::info!(pod.uid = %uid, "What a node reported of a pod is no longer unwritten");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Whether it is the first time for this pod; and how many there are, if that is to be said.
    fn failed(&mut self, uid: &PodUid, now: Instant) -> (bool, Option<usize>) {
        let first = !self.since.contains_key(uid);
        let since = *self.since.entry(uid.clone()).or_insert(now);
        let says = !self.said && now - since >= LONG;
        self.said |= says;
        (first, says.then_some(self.since.len()))
    }

    fn ended(&mut self, uid: &PodUid) -> bool {
        let ended = self.since.remove(uid).is_some();
        self.said &= !self.since.is_empty();
        ended
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_lasts_is_said_by_the_replica_that_has_it() {
        let metrics = Metrics::register(&Registry::new()).unwrap_or_else(|e| panic!("{e}"));
        let (notices, mut heard) = Notices::new();
        let failures = Failures::new(metrics.clone(), notices);
        let (uid, pod) = (PodUid("a".into()), ("shop".into(), "web".into()));
        failures.failed(&uid, &pod, "refused");
        assert!(heard.try_recv().is_err());
        tokio::time::advance(LONG).await;
        failures.failed(&uid, &pod, "refused");
        let notice = heard.try_recv().unwrap_or_else(|e| panic!("{e}"));
        assert!(notice.is_own && notice.is_warning);
        assert!(notice.message.contains("shop/web among them: refused"));
        assert_eq!(metrics.keep_errors.get(), 2);
    }

    #[test]
    fn each_pod_is_logged_once_and_all_of_them_said_once_when_it_lasts() {
        let mut state = State::default();
        let (a, b) = (PodUid("a".into()), PodUid("b".into()));
        let begun = Instant::now();
        let later = begun + LONG;
        assert_eq!(state.failed(&a, begun), (true, None));
        assert_eq!(state.failed(&a, begun), (false, None));
        assert_eq!(state.failed(&b, later), (true, None));
        assert_eq!(state.failed(&a, later), (false, Some(2)));
        assert_eq!(state.failed(&b, later + LONG), (false, None));
        assert!(state.ended(&a) && state.ended(&b) && !state.ended(&b));
        assert_eq!(state.failed(&a, later), (true, None));
        assert_eq!(state.failed(&a, later + LONG), (false, Some(1)));
    }
}

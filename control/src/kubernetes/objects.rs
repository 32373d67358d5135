// SPDX-License-Identifier: Apache-2.0
//! Brings Kubernetes' objects into the index, and how the watches are into the log.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use culvert_kubernetes::{Kind, Scope, Source, Status};
use culvert_runtime::readiness::Readiness;
use kube::Client;
use tokio::sync::watch;

use crate::{metrics::Metrics, objects::Arrivals};

/// What `/ready` calls the first lists.
pub(crate) const PENDING: &str = "kubernetes";

/// Follows Kubernetes into the index; says `done` after the first lists.
pub(crate) struct Follower {
    pub(crate) client: Client,
    pub(crate) index: Arc<Mutex<crate::index::Index>>,
    pub(crate) readiness: Readiness,
    pub(crate) loaded: watch::Sender<bool>,
    pub(crate) metrics: Metrics,
}

// === impl Follower ===

impl Follower {
    pub(crate) async fn run(self) {
        let source = Source::watch(self.client, Scope::Cluster);
        let (mut objects, mut status) = (source.objects(), source.status());
        let mut watches = Watches::new(self.metrics.clone());
        status.mark_changed();
        {
            let mut synced = std::pin::pin!(source.synced());
            loop {
                tokio::select! {
                    () = &mut synced => break,
                    Ok(()) = status.changed() => watches.note(&status.borrow_and_update()),
                }
            }
        }
        let mut arrivals = Arrivals::new(self.index, self.metrics);
        arrivals.reset(&mut objects);
        tracing::info!("Listed the cluster's objects for the first time");
        self.readiness.done(PENDING);
        self.loaded.send_replace(true);
        status.mark_changed();
        loop {
            tokio::select! {
                changed = objects.changed() => match changed {
                    Ok(()) => arrivals.reset(&mut objects),
                    Err(_) => return,
                },
                Ok(()) = status.changed() => watches.note(&status.borrow_and_update()),
                () = arrivals.refused() => {}
            }
        }
    }
}

/// What was last said of the watches.
struct Watches {
    known: BTreeMap<&'static str, Kind>,
    metrics: Metrics,
}

// === impl Watches ===

impl Watches {
    fn new(metrics: Metrics) -> Self {
        Self {
            known: BTreeMap::new(),
            metrics,
        }
    }

    fn note(&mut self, status: &Status) {
        for (name, kind) in &status.kinds {
            let before = self.known.insert(name, kind.clone()).unwrap_or_default();
            self.count(name, kind);
            log(name, &before, kind);
        }
    }

    fn count(&self, name: &str, kind: &Kind) {
        let failing = kind.error.is_some();
        self.metrics.watch(name, failing, kind.lists, kind.failures);
        self.metrics.unreadable(name, kind.unreadable.len());
    }
}

fn log(name: &str, before: &Kind, now: &Kind) {
    match (&before.error, &now.error) {
        (None, Some(error)) => {
            tracing::warn!(
                kind = name,
                error,
                "A watch does not go on; what is known is served"
            );
        }
        (Some(_), None) => tracing::info!(kind = name, "A watch goes on"),
        _ => {}
    }
    for (object, error) in &now.unreadable {
        if before.unreadable.get(object) != Some(error) {
            tracing::error!(
                kind = name,
                object,
                error,
                "Could not read an object; what it last said stays"
            );
        }
    }
}

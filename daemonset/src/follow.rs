// SPDX-License-Identifier: Apache-2.0
//! Follows the source of objects: works out what the pods of this node should be, tells users
//! what they can't have, and writes down for the CNI plugin who is unmeshed.

use std::{collections::BTreeSet, sync::Arc};

use culvert_api::cni::OptIn;
use culvert_manifests::{Objects, Problem, Source};
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
};

use crate::{
    desired::Desired,
    metrics::Metrics,
    store::{self, Store},
};

/// Follows the objects for one node.
#[derive(Debug)]
pub struct Follower {
    node: String,
    store: Store,
    metrics: Metrics,
    /// What was said already.
    told: BTreeSet<String>,
    /// What is on disk.
    saved: Option<OptIn>,
}

// === impl Follower ===

impl Follower {
    /// Begins with nothing.
    pub fn new(node: &str, store: Store, metrics: Metrics) -> Self {
        Self {
            node: node.to_owned(),
            store,
            metrics,
            told: BTreeSet::new(),
            saved: None,
        }
    }

    /// Follows a source on a task of its own until the source is dropped.
    pub async fn follow(mut self, source: &Source) -> watch::Receiver<Arc<Desired>> {
        let (mut objects, mut problems) = (source.objects(), source.problems());
        let first = self.look(&mut objects, &mut problems).await;
        let (sender, receiver) = watch::channel(first);
        tokio::spawn(async move {
            loop {
                let changed = tokio::select! {
                    changed = objects.changed() => changed,
                    changed = problems.changed() => changed,
                };
                if changed.is_err() {
                    return;
                }
                let desired = self.look(&mut objects, &mut problems).await;
                sender.send_if_modified(|now| {
                    let modified = **now != *desired;
                    *now = desired;
                    modified
                });
            }
        });
        receiver
    }

    async fn look(
        &mut self,
        objects: &mut watch::Receiver<Arc<Objects>>,
        problems: &mut watch::Receiver<Arc<Vec<Problem>>>,
    ) -> Arc<Desired> {
        let objects = Arc::clone(&objects.borrow_and_update());
        let problems = Arc::clone(&problems.borrow_and_update());
        let desired = Desired::new(&objects, &self.node);
        self.tell(&desired, &problems);
        self.save(&desired).await;
        Arc::new(desired)
    }

    /// Each problem once, and again when it came back.
    fn tell(&mut self, desired: &Desired, broken: &[Problem]) {
        self.metrics.count_problems(desired);
        let of_pods = desired
            .problems
            .iter()
            .map(|p| format!("{}: {}", p.pod, p.fault));
        let of_files = broken.iter().map(ToString::to_string);
        let now: BTreeSet<_> = of_pods.chain(of_files).collect();
        for problem in now.difference(&self.told) {
            tracing::warn!(problem, "Something in the manifests can't be done");
        }
        self.told = now;
    }

    async fn save(&mut self, desired: &Desired) {
        let opt_in = OptIn {
            unmeshed_pods: desired.unmeshed(),
        };
        if self.saved.as_ref() == Some(&opt_in) {
            return;
        }
        let (store, saving) = (self.store.clone(), opt_in.clone());
        match spawn_blocking(move || store.save_opt_in(&saving)).await {
            Ok(Ok(())) => self.saved = Some(opt_in),
            failed => self.not_saved(failed),
        }
    }

    fn not_saved(&self, failed: Result<Result<(), store::Error>, JoinError>) {
        let error = match failed {
            Ok(saved) => saved.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        tracing::error!(error, "Could not write down which pods are unmeshed");
    }
}

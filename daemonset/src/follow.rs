// SPDX-License-Identifier: Apache-2.0
//! Follows the source of objects: works out what the pods of this node should be, tells users
//! what they can't have, and writes down for the CNI plugin who is unmeshed.

use std::{collections::BTreeSet, sync::Arc};

use culvert_api::cni::OptIn;
use culvert_manifests::{Objects, Problem};
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
};

use crate::{
    desired::{Desired, OwnKernels, Rules},
    metrics::Metrics,
    store::{self, Store},
};

/// Follows the objects for one node.
#[derive(Debug)]
pub struct Follower {
    rules: Rules,
    store: Store,
    metrics: Metrics,
    /// What was said already.
    told: BTreeSet<String>,
    /// What is on disk.
    saved: Option<OptIn>,
}

/// What the pods follow from. Where a channel's sender is gone, nothing changes any more.
#[derive(Debug)]
pub struct Inputs {
    /// The objects of the cluster.
    pub objects: watch::Receiver<Arc<Objects>>,
    /// Manifests that can't be read.
    pub broken: watch::Receiver<Arc<Vec<Problem>>>,
    /// Pods that can't be steered, as their runtime says.
    pub own_kernels: watch::Receiver<Arc<OwnKernels>>,
}

// === impl Inputs ===

impl Inputs {
    async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.objects.changed() => {}
            Ok(()) = self.broken.changed() => {}
            Ok(()) = self.own_kernels.changed() => {}
            else => std::future::pending().await,
        }
    }

    fn latest(&mut self) -> (Arc<Objects>, Arc<Vec<Problem>>, Arc<OwnKernels>) {
        (
            Arc::clone(&self.objects.borrow_and_update()),
            Arc::clone(&self.broken.borrow_and_update()),
            Arc::clone(&self.own_kernels.borrow_and_update()),
        )
    }
}

// === impl Follower ===

impl Follower {
    /// Begins with nothing.
    pub fn new(rules: Rules, store: Store, metrics: Metrics) -> Self {
        Self {
            rules,
            store,
            metrics,
            told: BTreeSet::new(),
            saved: None,
        }
    }

    /// Follows objects that are all there, on a task of its own.
    pub async fn follow(mut self, mut inputs: Inputs) -> watch::Receiver<Arc<Desired>> {
        let (first, broken) = self.look(&mut inputs).await;
        let (sender, receiver) = watch::channel(Arc::clone(&first));
        self.tell(&first, &broken);
        tokio::spawn(self.go_on(inputs, sender));
        receiver
    }

    /// Follows objects that are all there when `synced` ends, on a task of its own. Until then
    /// pods are unknown, and keep what they have.
    pub fn follow_when(
        mut self,
        synced: impl Future<Output = ()> + Send + 'static,
        mut inputs: Inputs,
    ) -> watch::Receiver<Arc<Desired>> {
        let unknown = Desired::unknown(&self.rules);
        let (sender, receiver) = watch::channel(Arc::new(unknown));
        tokio::spawn(async move {
            synced.await;
            let (first, broken) = self.look(&mut inputs).await;
            sender.send_replace(Arc::clone(&first));
            self.tell(&first, &broken);
            self.go_on(inputs, sender).await;
        });
        receiver
    }

    async fn go_on(mut self, mut inputs: Inputs, sender: watch::Sender<Arc<Desired>>) {
        loop {
            inputs.changed().await;
            let (desired, broken) = self.look(&mut inputs).await;
            sender.send_if_modified(|now| {
                let modified = **now != *desired;
                *now = Arc::clone(&desired);
                modified
            });
            // What is told holds.
            self.tell(&desired, &broken);
        }
    }

    async fn look(&mut self, inputs: &mut Inputs) -> (Arc<Desired>, Arc<Vec<Problem>>) {
        let (objects, broken, own_kernels) = inputs.latest();
        let desired = Desired::new(&objects, &self.rules, &own_kernels);
        self.save(&desired).await;
        (Arc::new(desired), broken)
    }

    /// Each problem once, and again when it came back.
    fn tell(&mut self, desired: &Desired, broken: &[Problem]) {
        self.metrics.count_problems(desired);
        let of_pods = desired.problems.iter().map(ToString::to_string);
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

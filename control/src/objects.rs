// SPDX-License-Identifier: Apache-2.0
//! Brings the manifests into the index, and what is wrong with them into the log.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use culvert_manifests::{Objects, Problem, Source};
use culvert_runtime::readiness::Readiness;
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    index::{Index, View},
    metrics::Metrics,
};

/// What `/ready` calls the first reading of the manifests.
pub(crate) const PENDING: &str = "manifests";

const RETRY: Duration = Duration::from_secs(1);

/// Follows the manifests into the index; says `done` after the first reading.
pub(crate) struct Follower {
    pub(crate) dir: PathBuf,
    pub(crate) index: Arc<Mutex<Index>>,
    pub(crate) readiness: Readiness,
    pub(crate) loaded: watch::Sender<bool>,
    pub(crate) metrics: Metrics,
}

/// Objects on their way into the index, and what it refuses of them.
pub(crate) struct Arrivals {
    index: Arc<Mutex<Index>>,
    views: watch::Receiver<Arc<View>>,
    refused: BTreeSet<String>,
    metrics: Metrics,
}

// === impl Follower ===

impl Follower {
    pub(crate) async fn run(self) {
        let source = open(&self.dir).await;
        let mut objects = source.objects();
        let mut problems = source.problems();
        let mut known = Arc::new(Vec::new());
        let mut arrivals = Arrivals::new(Arc::clone(&self.index), self.metrics.clone());
        arrivals.reset(&mut objects);
        tracing::info!(manifests.dir = %self.dir.display(), "Read the manifests for the first time");
        self.readiness.done(PENDING);
        self.loaded.send_replace(true);
        problems.mark_changed();
        loop {
            tokio::select! {
                changed = objects.changed() => match changed {
                    Ok(()) => arrivals.reset(&mut objects),
                    Err(_) => return,
                },
                Ok(()) = problems.changed() => {
                    known = self.note_problems(&known, &problems.borrow_and_update());
                }
                () = arrivals.refused() => {}
            }
        }
    }

    fn note_problems(&self, known: &[Problem], now: &Arc<Vec<Problem>>) -> Arc<Vec<Problem>> {
        self.metrics.manifest_problems.set(count(now.len()));
        for problem in now.iter().filter(|problem| !known.contains(problem)) {
            tracing::error!(%problem, "Refused a manifest; what it last said while it was good stays");
        }
        for problem in known.iter().filter(|problem| !now.contains(problem)) {
            tracing::info!(file.path = %problem.file.display(), "A problem of a manifest is solved");
        }
        Arc::clone(now)
    }
}

// === impl Arrivals ===

impl Arrivals {
    pub(crate) fn new(index: Arc<Mutex<Index>>, metrics: Metrics) -> Self {
        let mut views = Index::lock(&index).view();
        views.mark_changed();
        Self {
            index,
            views,
            refused: BTreeSet::new(),
            metrics,
        }
    }

    pub(crate) fn reset(&self, objects: &mut watch::Receiver<Arc<Objects>>) {
        let objects = Arc::clone(&objects.borrow_and_update());
        tracing::debug!(
            pods = objects.pods.len(),
            services = objects.services.len(),
            namespaces = objects.namespaces.len(),
            "Took new objects"
        );
        Index::lock(&self.index).reset(objects);
    }

    /// Waits for a new view, and says what is refused since.
    pub(crate) async fn refused(&mut self) {
        if self.views.changed().await.is_err() {
            return std::future::pending().await;
        }
        let view = Arc::clone(&self.views.borrow_and_update());
        self.metrics.refusals.set(count(view.refusals.len()));
        for refusal in view.refusals.difference(&self.refused) {
            tracing::error!(refusal, "Refused what an object asks for");
        }
        self.refused = view.refusals.clone();
    }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Waits for the directory to be there.
async fn open(dir: &Path) -> Source {
    let mut last = None;
    loop {
        let path = dir.to_owned();
        let opened = spawn_blocking(move || Source::watch(path)).await;
        let error = match opened.map_err(std::io::Error::other).flatten() {
            Ok(source) => return source,
            Err(error) => error.to_string(),
        };
        if last.as_ref() != Some(&error) {
            tracing::warn!(manifests.dir = %dir.display(), error, "Waiting for the manifests");
            last = Some(error);
        }
        tokio::time::sleep(RETRY).await;
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Keeps the nodes' reports on disk. Without them a restarted control would call every pod
//! unmeshed until its node reports again, and peers would dial it in plaintext.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::watch, task::spawn_blocking};

use crate::{file, index::Reports, metrics::Metrics};

const FILE: &str = "reports.json";

/// The reports of an earlier run can't be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not read the nodes' reports in {}: {source}; without them pods that are meshed would be \
     dialled in plaintext: restore the file, or remove it if no pod is meshed",
    path.display()
)]
pub struct Lost {
    path: PathBuf,
    source: io::Error,
}

/// Reads what an earlier run kept, if there was one.
pub fn load(state_dir: &Path) -> Result<Reports, Lost> {
    let path = state_dir.join(FILE);
    match read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Reports::default()),
        read => read.map_err(|source| Lost { path, source }),
    }
}

/// Writes the reports whenever they change, and says which revision of them is written.
pub async fn keep(
    state_dir: PathBuf,
    mut reports: watch::Receiver<Arc<Reports>>,
    kept: watch::Sender<u64>,
    metrics: Metrics,
) {
    while reports.changed().await.is_ok() {
        let newest = Arc::clone(&reports.borrow_and_update());
        let revision = newest.revision();
        let path = state_dir.join(FILE);
        let written = spawn_blocking(move || write(&path, &newest)).await;
        if let Err(error) = written.map_err(io::Error::other).flatten() {
            metrics.keep_errors.inc();
            tracing::error!(%error, "Could not keep the nodes' reports; a restart of control forgets them");
        }
        kept.send_replace(revision);
    }
}

fn read(path: &Path) -> io::Result<Reports> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn write(path: &Path, reports: &Reports) -> io::Result<()> {
    file::replace(path, &serde_json::to_vec(reports)?, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            load(dir.path()).ok(),
            Some(Reports::default()),
            "a first run"
        );
        assert!(std::fs::write(dir.path().join(FILE), "{").is_ok());
        assert!(load(dir.path()).is_err());
        assert!(write(&dir.path().join(FILE), &Reports::default()).is_ok());
        assert_eq!(load(dir.path()).ok(), Some(Reports::default()));
    }
}

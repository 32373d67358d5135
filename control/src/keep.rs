// SPDX-License-Identifier: Apache-2.0
//! Keeps the nodes' reports on disk. Without them a restarted control would call every pod
//! unmeshed until its node reports again, and peers would dial it in plaintext.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::Deserialize;
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    file,
    index::{Index, Reports},
    metrics::Metrics,
};

const FILE: &str = "reports.json";

/// How long to wait after a failure: at first, and at most.
const RETRY: Duration = Duration::from_millis(100);
const MOST_RETRY: Duration = Duration::from_secs(5);

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

/// Writes the reports whenever they change, tells the index what is written, and says which
/// revision that is.
pub async fn keep(
    state_dir: PathBuf,
    index: Arc<Mutex<Index>>,
    kept: watch::Sender<u64>,
    metrics: Metrics,
) {
    let path = state_dir.join(FILE);
    let mut reports = Index::lock(&index).reports();
    // What came before this began is to be written too; what an earlier run kept is there.
    if reports.borrow().revision() > 0 {
        reports.mark_changed();
    }
    while reports.changed().await.is_ok() {
        let written = write_newest(&path, &mut reports, &metrics).await;
        Index::lock(&index).written(&written);
        kept.send_replace(written.revision());
    }
}

/// Tries until it is done; what is newer by then is written instead.
async fn write_newest(
    path: &Path,
    reports: &mut watch::Receiver<Arc<Reports>>,
    metrics: &Metrics,
) -> Arc<Reports> {
    let mut wait = RETRY;
    loop {
        let newest = Arc::clone(&reports.borrow_and_update());
        let (to, content) = (path.to_owned(), Arc::clone(&newest));
        let written = spawn_blocking(move || write(&to, &content)).await;
        let Err(error) = written.map_err(io::Error::other).flatten() else {
            return newest;
        };
        metrics.keep_errors.inc();
        tracing::error!(file.path = %path.display(), %error, "Could not keep the nodes' reports; pods that are new to them stay unmeshed for their peers");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(MOST_RETRY);
    }
}

fn read(path: &Path) -> io::Result<Reports> {
    let bytes = std::fs::read(path)?;
    serde_json::from_slice(&bytes).map_err(|error| later_release(&bytes).unwrap_or(error.into()))
}

/// Version 1 is a map of uids and says no version; any other will.
fn later_release(bytes: &[u8]) -> Option<io::Error> {
    let Later { version } = serde_json::from_slice(bytes).ok()?;
    let text = format!(
        "it has version {version}, expected 1: a control of a later release wrote it; start that \
         release again"
    );
    Some(io::Error::new(ErrorKind::InvalidData, text))
}

#[derive(Deserialize)]
struct Later {
    version: u32,
}

fn write(path: &Path, reports: &Reports) -> io::Result<()> {
    file::replace(path, &serde_json::to_vec(reports)?, 0o600)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use prometheus::Registry;

    use super::*;
    use crate::{
        index::Destination,
        testing::{objects, pod, report},
    };

    fn meshed(index: &Mutex<Index>) -> bool {
        let view = Arc::clone(&Index::lock(index).view().borrow());
        match view.resolve(SocketAddr::from(([10, 0, 0, 1], 1))) {
            Destination::Pod(peer) => peer.meshed,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_not_written_is_tried_again_and_told_to_nobody() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let state_dir = dir.path().join("not-there-yet");
        let mut index = Index::new(Reports::default());
        index.reset(objects(&pod("a", "n1", &["10.0.0.1"])));
        let index = Arc::new(Mutex::new(index));
        let metrics = Metrics::register(&Registry::new()).unwrap_or_else(|e| panic!("{e}"));
        let (keeping, mut kept) = watch::channel(0);
        let keeper = keep(
            state_dir.clone(),
            Arc::clone(&index),
            keeping,
            metrics.clone(),
        );
        let keeper = tokio::spawn(keeper);
        let steered = report("a", 1, 1, true);
        let applied = Index::lock(&index).report("n1", &steered);
        let revision = applied.unwrap_or_else(|e| panic!("{e}")).revision;
        while metrics.keep_errors.get() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!meshed(&index) && *kept.borrow() == 0);
        assert!(std::fs::create_dir(&state_dir).is_ok());
        assert!(kept.wait_for(|kept| *kept >= revision).await.is_ok());
        assert!(meshed(&index));
        let loaded = load(&state_dir).unwrap_or_else(|e| panic!("{e}"));
        let mut restarted = Index::new(loaded);
        restarted.reset(objects(&pod("a", "n1", &["10.0.0.1"])));
        assert!(meshed(&Mutex::new(restarted)));
        keeper.abort();
    }

    /// Each way: it is read, and what is written says all that it said.
    #[test]
    fn the_reports_of_earlier_releases_are_understood() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded");
        let releases = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let dirs = releases.map(|release| release.path().join("state/control"));
        let mut count = 0;
        for recorded in dirs.filter(|dir| dir.exists()) {
            let reports = load(&recorded).unwrap_or_else(|e| panic!("{e}"));
            let bytes = std::fs::read(recorded.join(FILE)).unwrap_or_else(|e| panic!("{e}"));
            let earlier: serde_json::Value =
                serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{e}"));
            let now = serde_json::to_value(&reports).unwrap_or_else(|e| panic!("{e}"));
            assert!(culvert_api::version::still_says(&now, &earlier), "{now}");
            count += 1;
        }
        assert!(count > 0, "nothing is recorded");
    }

    #[test]
    fn what_is_broken_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            load(dir.path()).ok(),
            Some(Reports::default()),
            "a first run"
        );
        let later = r#"{"version":2,"pods":{}}"#;
        for (broken, said) in [("{", "EOF"), (later, "version 2, expected 1")] {
            assert!(std::fs::write(dir.path().join(FILE), broken).is_ok());
            let lost = load(dir.path()).err().map(|lost| lost.to_string());
            assert!(
                lost.as_ref().is_some_and(|lost| lost.contains(said)),
                "{lost:?}"
            );
            assert_eq!(
                std::fs::read_to_string(dir.path().join(FILE))
                    .ok()
                    .as_deref(),
                Some(broken)
            );
        }
        assert!(write(&dir.path().join(FILE), &Reports::default()).is_ok());
        assert_eq!(load(dir.path()).ok(), Some(Reports::default()));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What control last said, on disk, so that a proxy that restarts while control is down still
//! serves. No secrets.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use culvert_api::{
    policy::InboundPolicy,
    workload::{PodUid, WorkloadKey},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::destinations::Saved;

/// The format of the file; another one is not read.
const VERSION: u32 = 1;

/// At most one write in so long.
const PAUSE: Duration = Duration::from_secs(1);

/// Everything that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// What destinations were.
    pub(crate) destinations: Vec<Saved>,
    /// What the policies of local pods were.
    pub(crate) policies: BTreeMap<PodUid, InboundPolicy>,
    /// The local pods whose peers know that they are meshed.
    pub(crate) reported: BTreeSet<WorkloadKey>,
}

/// Tells that something changed that is kept. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dirty(Arc<Notify>);

/// The file.
#[derive(Clone, Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    #[error(
        "it has version {got}, expected {VERSION}: a later release wrote it; start that again to use it"
    )]
    Version { got: u32 },
}

// === impl State ===

impl Default for State {
    fn default() -> Self {
        Self::new(Vec::new(), BTreeMap::new(), BTreeSet::new())
    }
}

impl State {
    pub(crate) fn new(
        destinations: Vec<Saved>,
        policies: BTreeMap<PodUid, InboundPolicy>,
        reported: BTreeSet<WorkloadKey>,
    ) -> Self {
        Self {
            version: VERSION,
            destinations,
            policies,
            reported,
        }
    }
}

// === impl Dirty ===

impl Dirty {
    /// Something changed.
    pub(crate) fn mark(&self) {
        self.0.notify_one();
    }
}

// === impl StateFile ===

impl StateFile {
    /// `state.json` in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            path: dir.join("state.json"),
        }
    }

    /// What an earlier proxy left, if it can be used. A damaged file, and one of another version,
    /// is moved aside.
    pub(crate) fn load(&self) -> Option<State> {
        match self.read() {
            Ok(state) => Some(state),
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let path = self.path.display().to_string();
                let aside = self.move_aside(&error);
                tracing::warn!(%error, path, aside = %aside.display(), "Ignored the state of an earlier proxy and put it aside");
                None
            }
        }
    }

    /// Writes what `now` says whenever it changed.
    pub(crate) async fn keep(self, dirty: Dirty, now: impl Fn() -> State) {
        loop {
            dirty.0.notified().await;
            let (file, state) = (self.clone(), now());
            let saved = tokio::task::spawn_blocking(move || file.save(&state)).await;
            if let Ok(Err(error)) = saved {
                let path = self.path.display().to_string();
                tracing::warn!(%error, path, "Could not keep the state for the next proxy");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Replaces the file.
    pub(crate) fn save(&self, state: &State) -> io::Result<()> {
        let new = self.path.with_extension("json.new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(state)?)?;
        file.sync_data()?;
        std::fs::rename(&new, &self.path)
    }

    fn read(&self) -> Result<State, Unusable> {
        let bytes = std::fs::read(&self.path)?;
        let Version { version } = serde_json::from_slice(&bytes)?;
        if version != VERSION {
            return Err(Unusable::Version { got: version });
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Each version has a name of its own, so that no damaged file takes the place of a good one.
    fn move_aside(&self, reason: &Unusable) -> PathBuf {
        let aside = match reason {
            Unusable::Version { got } => self.path.with_extension(format!("json.v{got}")),
            Unusable::Io(_) | Unusable::Damaged(_) => self.path.with_extension("json.damaged"),
        };
        if let Err(error) = std::fs::rename(&self.path, &aside) {
            tracing::warn!(%error, "Could not move the state aside");
        }
        aside
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[cfg(test)]
mod tests {
    use culvert_api::workload::NetnsCookie;

    use super::*;

    fn state() -> State {
        let uid = PodUid("a".to_owned());
        let key = WorkloadKey {
            uid: uid.clone(),
            cookie: NetnsCookie(7),
        };
        let policies = BTreeMap::from([(uid, InboundPolicy::strict())]);
        State::new(Vec::new(), policies, BTreeSet::from([key]))
    }

    fn file() -> (tempfile::TempDir, StateFile) {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let file = StateFile::new(dir.path());
        (dir, file)
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let (_dir, file) = file();
        assert_eq!(file.load(), None);
        assert!(file.save(&state()).is_ok());
        assert_eq!(file.load(), Some(state()));
    }

    #[test]
    fn a_damaged_file_is_moved_aside() {
        for (damage, aside) in [
            ("{", "state.json.damaged"),
            (r#"{"version":1}"#, "state.json.damaged"),
            (r#"{"version":2,"later":[]}"#, "state.json.v2"),
            ("", "state.json.damaged"),
        ] {
            let (dir, file) = file();
            assert!(std::fs::write(&file.path, damage).is_ok());
            assert_eq!(file.load(), None, "{damage}");
            let kept = std::fs::read_to_string(dir.path().join(aside));
            assert_eq!(kept.unwrap_or_default(), damage, "it is kept as it was");
            assert!(file.save(&state()).is_ok());
            assert_eq!(file.load(), Some(state()));
        }
    }

    /// Each way: it is read, and what is written says all that it said.
    #[test]
    fn the_state_of_earlier_releases_is_understood() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded");
        let releases = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let files = releases.map(|release| release.path().join("state/proxy/state.json"));
        let mut count = 0;
        for recorded in files.filter(|file| file.exists()) {
            let (_dir, file) = file();
            assert!(std::fs::copy(&recorded, &file.path).is_ok());
            let earlier = value(&file.path);
            let state = file
                .load()
                .unwrap_or_else(|| panic!("{}", recorded.display()));
            assert!(!state.destinations.is_empty() && !state.reported.is_empty());
            assert!(file.save(&state).is_ok());
            let now = value(&file.path);
            assert!(culvert_api::version::still_says(&now, &earlier), "{now}");
            count += 1;
        }
        assert!(count > 0, "nothing is recorded");
    }

    fn value(path: &Path) -> serde_json::Value {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{e}"));
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{e}"))
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_written_once() {
        let (_dir, file) = file();
        let (dirty, written) = (Dirty::default(), std::cell::Cell::new(0));
        (0..10).for_each(|_| dirty.mark());
        let now = || {
            written.set(written.get() + 1);
            state()
        };
        let keep = file.clone().keep(dirty, now);
        assert!(tokio::time::timeout(PAUSE * 3, keep).await.is_err());
        assert_eq!(written.get(), 1);
        assert_eq!(file.load(), Some(state()));
    }
}

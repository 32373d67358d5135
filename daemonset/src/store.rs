// SPDX-License-Identifier: Apache-2.0
//! What the agent keeps on disk: a record of every attachment, and for the CNI plugin the pods
//! that are known to be unmeshed.

mod interfaces;

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use culvert_api::{
    cni::{Attachment, OptIn, PASSED_DIR},
    workload::{NetnsCookie, PodUid, Workload, WorkloadKey},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::interfaces::{Interface, Interfaces};
use crate::{desired::exclusions::Exclusions, enrolment::sysctl, proxy_link::hub::LIVE};

/// How the name of a file ends that makes no sense.
const BROKEN: &str = "broken";

/// The format of the files. Fields are added under the same version; a later one is left alone.
const VERSION: u32 = 1;

/// What is known of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who the pod is.
    pub workload: Workload,
    /// The cookie of its network namespace.
    pub cookie: NetnsCookie,
    /// Where the runtime mounted the namespace.
    pub netns: PathBuf,
    /// The runtime's name for the sandbox.
    pub container_id: String,
    /// The interfaces that were added.
    #[serde(flatten)]
    pub interfaces: Interfaces,
    /// How far it is.
    pub phase: Phase,
    /// What it asked to be left alone.
    #[serde(default)]
    pub exclusions: Exclusions,
    /// The sysctls before the first enrolment.
    #[serde(default)]
    pub sysctls: sysctl::Before,
    /// When it was last enrolled while it ran, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled_live: Option<SystemTime>,
}

/// How far an attachment is. A record is written before the kernel is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Attached, not steered.
    Unmeshed,
    /// Steered, or about to be.
    Enrolled,
    /// Not steered any more; rules stay for open connections.
    Draining,
}

/// What no release changes of a file.
#[derive(Deserialize)]
struct Head {
    #[serde(default = "first_version")]
    version: u32,
}

#[derive(Serialize)]
struct Versioned<'a> {
    version: u32,
    #[serde(flatten)]
    record: &'a Record,
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: std::sync::Arc<File>,
}

/// The state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's file system.
    #[error("could not use the agent's state {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another agent runs.
    #[error("another agent uses the state directory {}: give each agent its own --state-dir", path.display())]
    InUse {
        /// Which directory.
        path: PathBuf,
    },
}

// === impl Record ===

impl Record {
    /// The enrolment.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey {
            uid: self.workload.uid.clone(),
            cookie: self.cookie,
        }
    }

    /// Whether its peers may still dial it in plaintext at `now`, which is after it was enrolled.
    pub fn is_live(&self, now: SystemTime) -> bool {
        let since = self.enrolled_live.map(|at| now.duration_since(at));
        since.is_some_and(|since| since.is_ok_and(|since| since < LIVE))
    }
}

// === impl Store ===

impl Store {
    /// Opens the state directory for this process alone.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let pods = dir.join("pods");
        fs::create_dir_all(&pods).map_err(|source| io_error(&pods, source))?;
        // Proxies and whoever else has a user of the node need not know of its pods.
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(dir, private).map_err(|source| io_error(dir, source))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(|source| io_error(&path, source))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => Error::InUse {
                path: dir.to_owned(),
            },
            fs::TryLockError::Error(source) => io_error(&path, source),
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            _lock: std::sync::Arc::new(lock),
        })
    }

    /// Reads all records. One that makes no sense is renamed to `.broken`, for somebody to look
    /// at; one of a later release stays as it is, for that release.
    pub fn records(&self) -> Result<Vec<Record>, Error> {
        let dir = self.dir.join("pods");
        let entries = fs::read_dir(&dir).map_err(|source| io_error(&dir, source))?;
        let mut records = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| io_error(&dir, source))?.path();
            if path.extension().is_some_and(|end| end == "json") {
                records.extend(read(&path)?);
            }
        }
        Ok(records)
    }

    /// Removes the record that can't be read of a namespace that is gone.
    pub fn remove_unreadable(&self, cookie: NetnsCookie) -> Result<(), Error> {
        let dir = self.dir.join("pods");
        let entries = fs::read_dir(&dir).map_err(|source| io_error(&dir, source))?;
        let (broken, record) = (format!("-{cookie}.{BROKEN}"), format!("-{cookie}.json"));
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let ends = |end: &str| path.to_str().is_some_and(|path| path.ends_with(end));
            if ends(&broken) || ends(&record) && is_later(&path) {
                fs::remove_file(&path).map_err(|source| io_error(&path, source))?;
            }
        }
        Ok(())
    }

    /// Writes a record in place of its earlier one.
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        // Not synced: what it is about does not outlive the machine either.
        let version = VERSION;
        let versioned = Versioned { version, record };
        write(&self.path(&record.key()), &versioned, |_| Ok(()))
    }

    /// Removes a record; one that is gone already is fine.
    pub fn remove(&self, key: &WorkloadKey) -> Result<(), Error> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&path, error)),
            _ => Ok(()),
        }
    }

    /// Writes what the CNI plugin decides from while the agent is away.
    pub fn save_opt_in(&self, opt_in: &OptIn) -> Result<(), Error> {
        write(&self.dir.join("opt-in.json"), opt_in, File::sync_data)
    }

    /// The uids of the pods that were unmeshed when that was last written.
    pub fn opt_in(&self) -> Result<OptIn, Error> {
        let opt_in = read(&self.dir.join("opt-in.json"))?;
        Ok(opt_in.unwrap_or_default())
    }

    /// The pods that the CNI plugin let pass while no agent was there, each with its note.
    pub fn passed(&self) -> Vec<(PathBuf, Attachment)> {
        let entries = fs::read_dir(self.dir.join(PASSED_DIR))
            .into_iter()
            .flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let notes = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
        notes
            .filter_map(|path| Some((path.clone(), read_note(&path)?)))
            .collect()
    }

    fn path(&self, key: &WorkloadKey) -> PathBuf {
        self.dir.join("pods").join(format!("{key}.json"))
    }
}

/// Whether a uid is fit to be part of a file's name.
pub fn is_file_name(uid: &PodUid) -> bool {
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !uid.0.is_empty() && uid.0.len() <= 128 && uid.0.bytes().all(fit)
}

/// One that cannot be read now is tried again.
fn read_note(path: &Path) -> Option<Attachment> {
    read(path).unwrap_or_else(|error| {
        tracing::warn!(%error, "Could not read a note of the CNI plugin");
        None
    })
}

fn first_version() -> u32 {
    1
}

fn is_later(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| later_version(&bytes).is_some())
}

fn later_version(bytes: &[u8]) -> Option<u32> {
    let Head { version } = serde_json::from_slice(bytes).ok()?;
    (version > VERSION).then_some(version)
}

/// None: it is gone, of a later release, or makes no sense.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|source| io_error(path, source))?,
    };
    if let Some(got) = later_version(&bytes) {
        tracing::error!(
            path = %path.display(), got, expected = VERSION,
            "Left a state file of a later release alone: start that release's agent again"
        );
        return Ok(None);
    }
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let aside = path.with_extension(BROKEN);
            tracing::error!(path = %aside.display(), %error, "Put a state file that makes no sense aside");
            fs::rename(path, &aside).map_err(|source| io_error(path, source))?;
            Ok(None)
        }
    }
}

/// To a temporary name, then into place.
fn write(
    path: &Path,
    value: &impl Serialize,
    sync: fn(&File) -> io::Result<()>,
) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let written = serde_json::to_vec_pretty(value)
        .map_err(io::Error::from)
        .and_then(|bytes| {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            sync(&file)?;
            fs::rename(&temporary, path)
        });
    written.map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
pub mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use culvert_api::version::still_says;

    use super::*;

    /// A record of a pod of this uid.
    pub fn record(uid: &str) -> Record {
        Record {
            workload: Workload {
                uid: PodUid(uid.to_owned()),
                namespace: "ns".into(),
                name: "a".into(),
                service_account: "default".into(),
                owner_kind: "pod".into(),
                owner_name: "a".into(),
            },
            cookie: NetnsCookie(7),
            netns: "/run/netns/x".into(),
            container_id: "c".into(),
            interfaces: Interfaces::default(),
            phase: Phase::Enrolled,
            exclusions: Exclusions {
                inbound_ports: vec![1..=2],
                ..Exclusions::default()
            },
            sysctls: sysctl::Before::from([("ipv4/fwmark_reflect".into(), "0".into())]),
            enrolled_live: Some(SystemTime::UNIX_EPOCH),
        }
    }

    fn open(dir: &Path) -> Store {
        Store::open(dir).unwrap_or_else(|e| panic!("{e}"))
    }

    fn records(store: &Store) -> Vec<Record> {
        store.records().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn records_outlive_the_agent() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let store = open(dir.path());
        let kept = record("u-1");
        assert!(store.save(&kept).is_ok() && store.save(&record("u-2")).is_ok());
        assert!(store.remove(&record("u-2").key()).is_ok());
        assert!(store.remove(&record("u-2").key()).is_ok());
        assert!(matches!(Store::open(dir.path()), Err(Error::InUse { .. })));
        drop(store);
        assert_eq!(records(&open(dir.path())), [kept]);
    }

    #[test]
    fn a_broken_record_is_put_aside_and_harms_no_other() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let store = open(dir.path());
        assert!(store.save(&record("u")).is_ok());
        let broken = dir.path().join("pods/v-8.json");
        assert!(fs::write(&broken, "{").is_ok());
        assert!(fs::write(broken.with_extension("tmp"), "{").is_ok());
        assert_eq!(records(&store), [record("u")]);
        let aside = broken.with_extension("broken");
        assert!(!broken.exists() && aside.exists());
        assert!(store.remove_unreadable(NetnsCookie(7)).is_ok() && aside.exists());
        assert_eq!(records(&store), [record("u")]);
        assert!(store.remove_unreadable(NetnsCookie(8)).is_ok() && !aside.exists());
    }

    #[test]
    fn a_record_of_a_later_version_is_left_as_it_is_until_its_pod_is_gone() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let store = open(dir.path());
        assert!(store.save(&record("u")).is_ok());
        let path = dir.path().join("pods/v-8.json");
        let later = r#"{"version":2,"pod":{}}"#;
        assert!(fs::write(&path, later).is_ok());
        assert_eq!(records(&store), [record("u")]);
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some(later));
        assert!(store.remove_unreadable(NetnsCookie(8)).is_ok() && !path.exists());
        assert_eq!(records(&store), [record("u")]);
    }

    #[test]
    fn a_record_that_can_not_be_read_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let store = open(dir.path());
        assert!(fs::create_dir(dir.path().join("pods/u-7.json")).is_ok());
        assert!(matches!(store.records(), Err(Error::Io { .. })));
    }

    #[test]
    fn who_was_enrolled_live_a_moment_ago_may_still_be_dialled_in_plaintext() {
        let record = record("u");
        let at = |since| record.is_live(SystemTime::UNIX_EPOCH + since);
        assert!(at(Duration::ZERO) && at(LIVE / 2) && !at(LIVE));
        assert!(
            !record.is_live(SystemTime::UNIX_EPOCH - LIVE),
            "the clock was set back"
        );
    }

    #[test]
    fn a_record_of_a_release_apart_is_read() {
        let text = serde_json::to_value(record("u")).unwrap_or_else(|e| panic!("{e}"));
        let mut old = text.clone();
        let fields = old.as_object_mut().unwrap_or_else(|| panic!("{text}"));
        for name in ["interfaces", "exclusions", "sysctls", "enrolled_live"] {
            assert!(fields.remove(name).is_some(), "{text}");
        }
        fields.insert("later".into(), 1.into());
        let got = serde_json::from_value::<Record>(old).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(got.key(), record("u").key());
    }

    /// Each way: it is read, and what is written says all that it said.
    #[test]
    fn the_state_of_earlier_releases_is_understood() {
        for release in recorded_releases() {
            let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
            let store = open(dir.path());
            let mut earlier = BTreeMap::new();
            for file in fs::read_dir(release.join("state/agent/pods"))
                .into_iter()
                .flatten()
            {
                let file = file.unwrap_or_else(|e| panic!("{e}"));
                assert!(
                    fs::copy(file.path(), dir.path().join("pods").join(file.file_name())).is_ok()
                );
                earlier.insert(file.file_name(), value(&file.path()));
            }
            assert_eq!(records(&store).len(), earlier.len());
            assert!(
                records(&store)
                    .iter()
                    .all(|record| store.save(record).is_ok())
            );
            for (name, earlier) in earlier {
                let now = value(&dir.path().join("pods").join(name));
                assert!(still_says(&now, &earlier), "{earlier} became {now}");
            }
            let opt_in = value(&release.join("state/agent/opt-in.json"));
            assert!(serde_json::from_value::<OptIn>(opt_in).is_ok());
            let passed = release.join("state/agent").join(PASSED_DIR);
            for note in fs::read_dir(passed).into_iter().flatten().flatten() {
                assert!(read_note(&note.path()).is_some());
            }
        }
    }

    fn recorded_releases() -> Vec<PathBuf> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded");
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let paths = entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir());
        let found: Vec<_> = paths.collect();
        assert!(!found.is_empty(), "nothing is recorded");
        found
    }

    fn value(path: &Path) -> serde_json::Value {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    #[test]
    fn a_uid_is_no_path() {
        let fit = |uid: &str| is_file_name(&PodUid(uid.to_owned()));
        assert!(fit("8f1c2d3e-0000-4000-8000-000000000000"));
        assert!(!fit("../x") && !fit("") && !fit("a/b") && !fit("a.json"));
    }
}

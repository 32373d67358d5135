// SPDX-License-Identifier: Apache-2.0
//! What each file of the directory says now, and what it last said while it was good.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    Objects, Problem,
    file::{self, Contents, Key},
    tree::Fault,
};

/// The longest file that is read, in bytes: twice what etcd takes for one object.
const MAX_FILE: u64 = 3 << 20;

/// A file that was written more recently than this may still be being written.
const SETTLED_AFTER: Duration = Duration::from_millis(40);

/// Which files a scan reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// All that changed.
    Any,
    /// Those that changed and were not written to just now.
    Settled,
}

/// The files of a directory.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    conflicts: Vec<Problem>,
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    /// What it says now.
    latest: Result<Arc<Contents>, Problem>,
    /// What holds: the last good content that clashed with no other file.
    accepted: Option<Arc<Contents>>,
}

/// What differs when a file was written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

// === impl Store ===

impl Store {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            files: BTreeMap::new(),
            conflicts: Vec::new(),
        }
    }

    /// Reads what changed. True: a file was left for later, because it may be being written.
    pub(crate) fn scan(&mut self, freshness: Freshness) -> io::Result<bool> {
        let found = list(&self.dir)?;
        self.files.retain(|path, _| found.contains_key(path));
        let mut unsettled = false;
        for (path, metadata) in found {
            unsettled |= self.read(path, &metadata, freshness);
        }
        self.settle_conflicts();
        Ok(unsettled)
    }

    fn read(&mut self, path: PathBuf, metadata: &Metadata, freshness: Freshness) -> bool {
        let stamp = Stamp::of(metadata);
        let known = self.files.get(&path);
        if known.is_some_and(|file| file.stamp == stamp) {
            return false;
        }
        if freshness == Freshness::Settled && is_fresh(metadata) {
            return true;
        }
        let accepted = known.and_then(|file| file.accepted.clone());
        let latest = parse(&path, metadata).map(Arc::new);
        let file = File {
            stamp,
            latest,
            accepted,
        };
        self.files.insert(path, file);
        false
    }

    pub(crate) fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        let accepted = self
            .files
            .values()
            .filter_map(|file| file.accepted.as_deref());
        for (key, (_, object)) in accepted.flatten() {
            objects.insert(key, object);
        }
        objects
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        let broken = self
            .files
            .values()
            .filter_map(|file| file.latest.as_ref().err());
        let mut problems: Vec<_> = broken.chain(&self.conflicts).cloned().collect();
        problems.sort();
        problems
    }

    /// Takes each file's new content unless another file has one of its objects already. Who has
    /// an object keeps it, so that a newcomer never takes it away; among newcomers the first in
    /// the order of names wins.
    fn settle_conflicts(&mut self) {
        let mut owners = BTreeMap::new();
        for (path, file) in self.files.iter().filter(|(_, file)| !file.is_news()) {
            claim(&mut owners, path, file.accepted.as_deref());
        }
        self.conflicts.clear();
        for (path, file) in self.files.iter_mut().filter(|(_, file)| file.is_news()) {
            match clash(&owners, path, file.latest.as_deref().ok()) {
                None => file.accepted = file.latest.as_ref().ok().cloned(),
                Some(problem) => {
                    self.conflicts.push(problem);
                    let stale = clash(&owners, path, file.accepted.as_deref()).is_some();
                    file.accepted.take_if(|_| stale);
                }
            }
            claim(&mut owners, path, file.accepted.as_deref());
        }
    }
}

fn claim(owners: &mut BTreeMap<Key, PathBuf>, path: &Path, contents: Option<&Contents>) {
    let keys = contents.into_iter().flat_map(BTreeMap::keys);
    owners.extend(keys.map(|key| (key.clone(), path.to_owned())));
}

fn clash(
    owners: &BTreeMap<Key, PathBuf>,
    path: &Path,
    contents: Option<&Contents>,
) -> Option<Problem> {
    let taken = |key| owners.get_key_value(key);
    let (line, (key, owner)) = contents?
        .iter()
        .find_map(|(key, (line, _))| Some((*line, taken(key)?)))?;
    Some(Problem {
        file: path.to_owned(),
        line: Some(line),
        reason: format!(
            "{key} is already defined in {}; remove one of the two",
            owner.display()
        ),
    })
}

// === impl File ===

impl File {
    fn is_news(&self) -> bool {
        match (&self.latest, &self.accepted) {
            (Ok(latest), Some(accepted)) => !Arc::ptr_eq(latest, accepted),
            (Ok(_), None) => true,
            (Err(_), _) => false,
        }
    }
}

// === impl Stamp ===

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn is_fresh(metadata: &Metadata) -> bool {
    let age = metadata
        .modified()
        .map(|at| SystemTime::now().duration_since(at));
    matches!(age, Ok(Ok(age)) if age < SETTLED_AFTER)
}

/// The manifests of the directory. A file that vanished meanwhile is not there.
fn list(dir: &Path) -> io::Result<BTreeMap<PathBuf, Metadata>> {
    let mut found = BTreeMap::new();
    let names: BTreeSet<_> = std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    for path in names.into_iter().filter(|path| is_manifest(path)) {
        if let Ok(metadata) = std::fs::metadata(&path) {
            found.insert(path, metadata);
        }
    }
    Ok(found)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn parse(path: &Path, metadata: &Metadata) -> Result<Contents, Problem> {
    let whole = |reason: String| problem(path, None, reason);
    if !metadata.is_file() {
        return Err(whole("not a regular file".to_owned()));
    }
    if metadata.len() > MAX_FILE {
        let reason = format!("got {} bytes, expected at most {MAX_FILE}", metadata.len());
        return Err(whole(reason));
    }
    let bytes =
        std::fs::read(path).map_err(|error| whole(format!("could not read it: {error}")))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count() as u64;
        problem(path, Some(line), "not UTF-8".to_owned())
    })?;
    file::parse(text).map_err(|fault: Fault| problem(path, fault.line, fault.to_string()))
}

fn problem(path: &Path, line: Option<u64>, reason: String) -> Problem {
    let file = path.to_owned();
    Problem { file, line, reason }
}

// SPDX-License-Identifier: Apache-2.0
//! The objects that control and the agents see: a directory with one file per object, each replaced
//! in one step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

/// The directory. Clones share it.
#[derive(Clone, Debug)]
pub struct Published {
    dir: Arc<PathBuf>,
    contents: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

// === impl Published ===

impl Published {
    /// An empty directory.
    pub fn create(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self {
            dir: Arc::new(dir),
            contents: Arc::default(),
        })
    }

    /// Writes an object, unless the file already says the same.
    pub fn put(&self, file: &str, object: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(object)?;
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if contents.get(file) == Some(&bytes) {
            return Ok(());
        }
        // Readers take *.json only.
        let temporary = self.dir.join(format!(".{file}.new"));
        fs::write(&temporary, &bytes)?;
        fs::rename(&temporary, self.dir.join(file))?;
        contents.insert(file.to_owned(), bytes);
        Ok(())
    }

    /// Removes an object. What is gone is fine.
    pub fn remove(&self, file: &str) -> io::Result<()> {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        contents.remove(file);
        match fs::remove_file(self.dir.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the objects of a kind that are not among `kept`.
    pub fn retain(&self, kind: &str, kept: &BTreeSet<String>) -> io::Result<()> {
        let prefix = format!("{kind}-");
        let gone: Vec<_> = {
            let contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
            let of_kind = contents.keys().filter(|file| file.starts_with(&prefix));
            of_kind
                .filter(|file| !kept.contains(*file))
                .cloned()
                .collect()
        };
        gone.iter().try_for_each(|file| self.remove(file))
    }
}

/// The file of an object; unambiguous, because a namespace's name has no dot.
pub fn file(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}-{namespace}.{name}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_objects_are_ever_visible() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let published = Published::create(dir.path().join("m")).unwrap_or_else(|e| panic!("{e}"));
        let (a, b) = (file("pod", "ns", "a"), file("pod", "ns", "b"));
        for file in [&a, &b] {
            published.put(file, &"x").unwrap_or_else(|e| panic!("{e}"));
        }
        published
            .retain("pod", &BTreeSet::from([a.clone()]))
            .unwrap_or_else(|e| panic!("{e}"));
        let left =
            fs::read_dir(dir.path().join("m")).map(|dir| dir.flatten().map(|e| e.file_name()));
        let left: Vec<_> = left.unwrap_or_else(|e| panic!("{e}")).collect();
        assert_eq!(left, ["pod-ns.a.json"]);
    }
}

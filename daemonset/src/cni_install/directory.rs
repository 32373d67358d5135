// SPDX-License-Identifier: Apache-2.0
//! What a container runtime finds in its directory of network configurations.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    chain,
    list::{Broken, List, Plugin},
};

/// What libcni looks at (<https://github.com/containernetworking/cni/blob/v1.3.0/libcni/conf.go>).
const ENDS: [&str; 3] = ["conf", "conflist", "json"];

/// More is no configuration.
const LARGEST: u64 = 1 << 20;

/// The files of others.
#[derive(Debug)]
pub struct Others {
    /// What the runtime would use without us.
    pub primary: Primary,
    /// Plugins that other meshes chain in copies of ours.
    pub found: Vec<Plugin>,
    /// A file that the runtime takes before ours.
    pub before: Option<String>,
}

/// What the runtime would use without us.
#[derive(Debug)]
pub enum Primary {
    /// This.
    Found {
        /// Its file.
        name: String,
        /// What it says.
        list: List,
        /// The permissions of its file.
        mode: u32,
    },
    /// Something that can't be read.
    Broken {
        /// Its file.
        name: String,
        /// Why.
        broken: Unusable,
    },
    /// Nothing.
    Missing,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file system's fault.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
    /// Its author's.
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Looks at the files in `dir` but `ours`.
pub fn others(dir: &Path, ours: &str) -> io::Result<Others> {
    let names = names(dir)?;
    let mut others = Others {
        primary: Primary::Missing,
        found: Vec::new(),
        before: names.iter().find(|name| name.as_str() < ours).cloned(),
    };
    for name in names.into_iter().filter(|name| name != ours) {
        let read = read(&dir.join(&name), &name);
        if let Some(found) = read.as_ref().ok().and_then(|(list, _)| chain::found(list)) {
            others.found.extend(found);
        } else if matches!(others.primary, Primary::Missing) {
            others.primary = primary(name, read);
        }
    }
    Ok(others)
}

/// The text of a file; none if it is not there.
pub fn text(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match open(path) {
        Ok((text, _)) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// In libcni's order.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = PathBuf::from(entry.file_name());
        let end = path.extension().and_then(|end| end.to_str());
        if end.is_some_and(|end| ENDS.contains(&end)) && !entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A list without plugins is passed over by the runtimes.
fn primary(name: String, read: Result<(List, u32), Unusable>) -> Primary {
    match read {
        Ok((list, _)) if list.plugins.is_empty() => Primary::Missing,
        Ok((list, mode)) => Primary::Found { name, list, mode },
        // It went while the directory was read.
        Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => Primary::Missing,
        Err(broken) => Primary::Broken { name, broken },
    }
}

fn read(path: &Path, name: &str) -> Result<(List, u32), Unusable> {
    let (text, mode) = open(path)?;
    Ok((List::read(name, &text)?, mode))
}

/// Not what blocks or never ends.
fn open(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(io::Error::other("expected a file of at most 1 MiB"));
    }
    Ok((fs::read(path)?, metadata.permissions().mode() & 0o777))
}

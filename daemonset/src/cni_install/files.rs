// SPDX-License-Identifier: Apache-2.0
//! Files that others read at any moment, also after the machine lost its power.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Which content a path had when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Puts a file into its place in one step. The temporary name has an end that no runtime reads.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path);
    let written = write(&temporary, content, mode).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may not even have been made.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_parent(path)
}

/// Removes a file, and what a replacement of it left that was interrupted. Whether it was there.
pub fn remove(path: &Path) -> io::Result<bool> {
    remove_one(&temporary(path))?;
    let removed = remove_one(path)?;
    if removed {
        sync_parent(path)?;
    }
    Ok(removed)
}

// === impl Stamp ===

impl Stamp {
    /// Of what is there now.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// One name for all times: what is left of an interrupted one is replaced by the next.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    remove_one(path)?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn remove_one(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

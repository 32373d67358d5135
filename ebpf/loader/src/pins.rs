// SPDX-License-Identifier: Apache-2.0
//! Where things are pinned.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::maps::MapData;
use culvert_ebpf_abi::{ABI_VERSION, map};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use crate::{Error, sys};

/// The name of a pod's link.
pub(crate) const LINK: &str = "link";

/// One node's directory.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
}

// === impl Pins ===

impl Pins {
    /// Makes the directories of this version.
    pub(crate) fn make(dir: &Path) -> Result<Self, Error> {
        if !parents_are_bpffs(dir) {
            return Err(Error::NotBpffs {
                dir: dir.to_owned(),
            });
        }
        let pins = Self {
            dir: dir.to_owned(),
        };
        make_dir(&pins.node())?;
        make_dir(&pins.pods())?;
        Ok(pins)
    }

    fn version(&self) -> PathBuf {
        self.dir.join(format!("v{ABI_VERSION}"))
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.version().join("node")
    }

    fn pods(&self) -> PathBuf {
        self.version().join("pods")
    }

    pub(crate) fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(cookie.to_string())
    }

    /// The cookies of the pods that have a directory, be it half made.
    pub(crate) fn cookies(&self) -> Result<Vec<u64>, Error> {
        cookies(&self.pods())
    }

    /// The pods' directories of other versions.
    pub(crate) fn of_other_versions(&self) -> Result<Vec<(u64, PathBuf)>, Error> {
        let mut found = Vec::new();
        for version in self.other_versions()? {
            let pods = version.join("pods");
            if pods.exists() {
                let dir = |cookie: u64| (cookie, pods.join(cookie.to_string()));
                found.extend(cookies(&pods)?.into_iter().map(dir));
            }
        }
        Ok(found)
    }

    /// Removes the directories of other versions.
    pub(crate) fn collect_other_versions(&self) -> Result<usize, Error> {
        let others = self.other_versions()?;
        others.iter().try_for_each(|dir| remove_tree(dir))?;
        Ok(others.len())
    }

    /// Removes the directories of all versions, and the node's when it is no mount.
    pub(crate) fn remove_all(&self) -> Result<(), Error> {
        self.collect_other_versions()?;
        remove_tree(&self.version())?;
        match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                Err(Error::io("remove the directory", &self.dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Takes over the map of exempt sockets of another version, if there is one and none of our own:
    /// a proxy goes on with the sockets that an earlier agent exempted, and the hooks of this
    /// version are to leave them alone too. So this map is the same in all versions.
    pub(crate) fn inherit_exemptions(&self) -> Result<(), Error> {
        let own = self.node().join(map::EXEMPT);
        let others = self.other_versions()?;
        let mut theirs = others.iter().map(|dir| dir.join("node").join(map::EXEMPT));
        let Some(theirs) = theirs.find(|pin| !own.exists() && pin.exists()) else {
            return Ok(());
        };
        let doing = || format!("take over the exempt sockets of {}", theirs.display());
        let map = MapData::from_pin(&theirs).map_err(Error::kernel(doing()))?;
        map.pin(&own).map_err(Error::kernel(doing()))
    }

    fn other_versions(&self) -> Result<Vec<PathBuf>, Error> {
        let is_other = |name: &String| {
            let version = name.strip_prefix('v').and_then(|v| v.parse::<u32>().ok());
            version.is_some_and(|v| v != ABI_VERSION)
        };
        let others = names(&self.dir)?.into_iter().filter(is_other);
        Ok(others.map(|name| self.dir.join(name)).collect())
    }
}

/// The names in a directory of pods that are cookies.
fn cookies(pods: &Path) -> Result<Vec<u64>, Error> {
    let names = names(pods)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Whether the nearest parent that exists is in a BPF file system.
fn parents_are_bpffs(dir: &Path) -> bool {
    dir.ancestors()
        .find_map(|parent| statfs(parent).ok())
        .is_some_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

pub(crate) fn is_cgroup2(path: &Path) -> bool {
    file_system(path) == Some(CGROUP2_SUPER_MAGIC)
}

fn file_system(path: &Path) -> Option<FsType> {
    statfs(path).ok().map(|fs| fs.filesystem_type())
}

/// Where the successor of a pin is made. A bpffs takes no dots in names
/// (<https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/inode.c>).
pub(crate) fn staged(pin: &Path) -> PathBuf {
    let mut path = pin.as_os_str().to_owned();
    path.push("_new");
    path.into()
}

pub(crate) fn make_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::io("make the directory", path))
}

/// The UTF-8 names in a directory; ours are.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read the directory", dir))? {
        let entry = entry.map_err(Error::io("read the directory", dir))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Removes a directory of pins; links in it are detached at once. That it is missing is no error.
pub(crate) fn remove_tree(dir: &Path) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    for name in names(dir)? {
        let path = dir.join(name);
        if path.is_dir() {
            remove_tree(&path)?;
        } else {
            remove_pin(&path)?;
        }
    }
    fs::remove_dir(dir).map_err(Error::io("remove the directory", dir))
}

/// Removes what a failed attachment made, unless there is an earlier one's link.
pub(crate) fn remove_unless_linked(dir: &Path) {
    if !dir.join(LINK).exists()
        && let Err(error) = remove_tree(dir)
    {
        tracing::warn!(%error, "Left a half-made directory behind");
    }
}

/// Removes a pin; a link is detached at once. That it is missing is no error.
pub(crate) fn remove_pin(path: &Path) -> Result<(), Error> {
    if let Ok(object) = sys::open_pin(path)
        && let Err(error) = sys::detach_link(object.as_fd())
        && error.raw_os_error() != Some(nix::libc::EINVAL)
    {
        // EINVAL: not a link. Otherwise the kernel detaches it when the last pin is gone.
        tracing::debug!(path = %path.display(), %error, "Could not detach a link at once");
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove the pin", path)(error))
        }
        _ => Ok(()),
    }
}

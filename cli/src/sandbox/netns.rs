// SPDX-License-Identifier: Apache-2.0
//! Network namespaces by name, as `ip netns` keeps them, each entered only by a closure on a thread
//! of its own.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// Where `ip netns` keeps them.
pub const DIR: &str = "/run/netns";

const NONE: Option<&Path> = None;

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    /// Its name.
    pub name: String,
    fd: OwnedFd,
}

// === impl Netns ===

impl Netns {
    /// Makes a namespace, which must not exist, with its loopback down.
    pub fn create(name: &str) -> io::Result<Self> {
        prepare_dir()?;
        let path = path(name);
        File::options().write(true).create_new(true).open(&path)?;
        let target = path.clone();
        let made = on_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let source = Some(Path::new("/proc/thread-self/ns/net"));
            Ok(mount(source, &target, NONE, MsFlags::MS_BIND, NONE)?)
        });
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Self::open(name)
    }

    /// Opens a namespace that exists.
    pub fn open(name: &str) -> io::Result<Self> {
        let fd = File::open(path(name))?.into();
        let name = name.to_owned();
        Ok(Self { name, fd })
    }

    /// Where it is bound.
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// A descriptor of its own, for a child that is to enter it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// For netlink, which takes the number.
    pub fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Runs a closure inside, on a short-lived thread, and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let fd = self.descriptor()?;
        on_thread(move || {
            setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
            drop(fd);
            inside()
        })
    }
}

/// Removes the name; the namespace ends with its last process and socket. What is gone is fine.
pub fn remove(name: &str) -> io::Result<()> {
    let path = path(name);
    // EINVAL: made, but not yet mounted, when its maker was killed.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The names of all namespaces of the machine.
pub fn list() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
    entries.map(name).filter_map(Result::transpose).collect()
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Makes the directory a shared mount, as `ip netns add` does, so that a namespace's name that is
/// removed here goes away in every mount namespace and does not keep the namespace alive there.
fn prepare_dir() -> io::Result<()> {
    fs::create_dir_all(DIR)?;
    let share = || mount(NONE, DIR, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
    match share() {
        Err(nix::Error::EINVAL) => {
            mount(
                Some(DIR),
                DIR,
                NONE,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                NONE,
            )?;
            Ok(share()?)
        }
        shared => Ok(shared?),
    }
}

fn on_thread<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = thread::Builder::new().name("netns".into()).spawn(f)?;
    let panicked = |_| Err(io::Error::other("the thread inside the namespace panicked"));
    thread.join().unwrap_or_else(panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_entered_and_removed_twice() {
        let name = format!("cvt-{}-netns", std::process::id());
        let netns = Netns::create(&name).unwrap_or_else(|e| panic!("{e}"));
        let again = Netns::create(&name).map(|_| ()).map_err(|e| e.kind());
        assert_eq!(again, Err(io::ErrorKind::AlreadyExists));
        let links = || {
            Ok(fs::read_to_string("/proc/thread-self/net/dev")?
                .lines()
                .count())
        };
        assert_eq!(
            netns.run(links).ok(),
            Some(3),
            "two lines of heading and lo"
        );
        for _ in 0..2 {
            remove(&name).unwrap_or_else(|e| panic!("{e}"));
        }
        assert!(list().is_ok_and(|names| !names.contains(&name)));
    }
}

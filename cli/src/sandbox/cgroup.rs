// SPDX-License-Identifier: Apache-2.0
//! The sandbox's cgroups, in the unified hierarchy.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::layout::{Name, NodeId};

const POLL: Duration = Duration::from_millis(10);

/// The cgroups of one sandbox.
#[derive(Clone, Debug)]
pub struct Cgroups {
    mount: PathBuf,
    base: PathBuf,
}

// === impl Cgroups ===

impl Cgroups {
    /// The cgroups of the sandbox of this name; none where no cgroup2 is mounted.
    pub fn find(name: &Name) -> io::Result<Option<Self>> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        Ok(mount_point(&mounts).map(|mount| Self {
            base: mount.join("culvert").join(name.as_str()),
            mount,
        }))
    }

    /// All of the sandbox.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where the supervisor is, which makes the readiness probes.
    pub fn kubelet(&self) -> PathBuf {
        self.base.join("kubelet")
    }

    /// Where control is.
    pub fn control(&self) -> PathBuf {
        self.base.join("control")
    }

    /// What the agent steers in: the pods of a node, itself and the proxy among them.
    pub fn kubepods(&self, node: NodeId) -> PathBuf {
        self.base.join(node.to_string()).join("kubepods")
    }

    /// Removes the parent of all sandboxes if this was the last.
    pub fn remove_parent(&self) {
        // Another sandbox may be there: then the kernel refuses, as it should.
        let _ = fs::remove_dir(self.mount.join("culvert"));
    }
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (dir, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(dir))
    })
}

/// Moves this process into a cgroup.
pub fn join(cgroup: &Path) -> io::Result<()> {
    fs::create_dir_all(cgroup)?;
    fs::write(cgroup.join("cgroup.procs"), "0")
}

/// The processes of a cgroup and of those below it. What is gone has none.
pub fn processes(cgroup: &Path) -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    each(cgroup, &mut |dir| {
        let text = fs::read_to_string(dir.join("cgroup.procs"))?;
        pids.extend(
            text.lines()
                .filter_map(|pid| pid.parse().ok())
                .map(Pid::from_raw),
        );
        Ok(())
    })?;
    Ok(pids)
}

/// Sends a signal to every process of a cgroup.
pub fn signal(cgroup: &Path, signal: Signal) -> io::Result<()> {
    for pid in processes(cgroup)? {
        // It may have ended since it was listed.
        let _ = kill(pid, signal);
    }
    Ok(())
}

/// Whether a process is left in a cgroup or below it.
pub fn populated(cgroup: &Path) -> io::Result<bool> {
    match fs::read_to_string(cgroup.join("cgroup.events")) {
        Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
        Err(error) if gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Kills every process of a cgroup and below it, and waits until they are gone.
pub fn kill_all(cgroup: &Path, patience: Duration) -> io::Result<()> {
    match fs::write(cgroup.join("cgroup.kill"), "1") {
        Err(error) if gone(&error) => return Ok(()),
        written => written?,
    }
    let until = Instant::now() + patience;
    while populated(cgroup)? {
        if Instant::now() > until {
            let message = format!("processes in {} don't die", cgroup.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Removes a cgroup without processes and those below it. What is gone is fine.
pub fn remove(cgroup: &Path, patience: Duration) -> io::Result<()> {
    let until = Instant::now() + patience;
    loop {
        match remove_once(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                thread::sleep(POLL);
            }
            removed => return removed,
        }
    }
}

fn remove_once(cgroup: &Path) -> io::Result<()> {
    each(cgroup, &mut |dir| match fs::remove_dir(dir) {
        Err(error) if gone(&error) => Ok(()),
        removed => removed,
    })
}

/// The deepest first.
fn each(cgroup: &Path, f: &mut impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(cgroup) {
        Err(error) if gone(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            each(&entry.path(), f)?;
        }
    }
    match f(cgroup) {
        Err(error) if gone(&error) => Ok(()),
        done => done,
    }
}

/// ENOENT before a file is opened, ENODEV after its cgroup is removed.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_where_it_is_mounted() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn what_is_gone_is_removed_with_success() {
        let nowhere = Path::new("/nonexistent/cgroup");
        assert!(kill_all(nowhere, POLL).is_ok());
        assert!(remove(nowhere, POLL).is_ok());
        assert!(processes(nowhere).is_ok_and(|pids| pids.is_empty()));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Work inside a network namespace, on a thread of its own that ends there.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` and the sandbox keep namespaces.
const DIR: &str = "/run/netns";

/// A named network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    path: PathBuf,
}

// === impl Netns ===

impl Netns {
    /// The namespace of this name. It may not exist.
    pub fn named(name: &str) -> Self {
        Self {
            path: Path::new(DIR).join(name),
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` inside and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let joined = self.spawn(work)?.join();
        joined.map_err(|_| anyhow!("the work in {} panicked", self.path.display()))?
    }

    /// Runs `work` inside, beside the caller.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
        let path = self.path.display().to_string();
        let netns = File::open(&self.path).with_context(|| format!("open {path}"))?;
        Ok(thread::spawn(move || {
            setns(&netns, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))?;
            work()
        }))
    }
}

/// The names of all namespaces that contain `part`.
pub fn names_with(part: &str) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.contains(part)).collect())
}

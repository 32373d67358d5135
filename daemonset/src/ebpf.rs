// SPDX-License-Identifier: Apache-2.0
//! The node's eBPF, called from async code: every call is a system call or many, so it runs on a
//! thread for blocking work.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use culvert_ebpf_loader::{self as loader, Node, NodeOptions};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// The loaded programs. Clones share them.
#[derive(Clone, Debug)]
pub struct Ebpf {
    node: Arc<Mutex<Node>>,
}

/// A call to the loader failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's or the programs' fault.
    #[error(transparent)]
    Loader(#[from] loader::Error),
    /// A bug of the agent, or its end.
    #[error("a call to the eBPF loader did not return: {0}")]
    Lost(#[from] tokio::task::JoinError),
    /// The host's set-up.
    #[error("could not mount a bpffs at {}: {source} (CAP_SYS_ADMIN is needed)", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// The host's file system.
    #[error("could not make the directory {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

// === impl Ebpf ===

impl Ebpf {
    /// Loads the programs, or takes over what an earlier agent pinned.
    pub async fn load(options: NodeOptions) -> Result<Self, Error> {
        let load = move || {
            loader::probe_kernel()?;
            ensure_bpffs(&options.dir)?;
            Ok::<_, Error>(Node::load(&options)?)
        };
        let node = tokio::task::spawn_blocking(load).await??;
        Ok(Self {
            node: Arc::new(Mutex::new(node)),
        })
    }

    /// Calls the loader.
    pub async fn run<T, F>(&self, call: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Node) -> Result<T, loader::Error> + Send + 'static,
    {
        let this = self.clone();
        let call = move || call(&mut this.lock());
        Ok(tokio::task::spawn_blocking(call).await??)
    }

    /// For calls that are quick and come from no async code.
    pub fn lock(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Mounts a bpffs at `dir` unless it lies in one.
fn ensure_bpffs(dir: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(|source| Error::Directory {
        path: dir.to_owned(),
        source,
    })?;
    let failed = |source| Error::Mount {
        path: dir.to_owned(),
        source,
    };
    if statfs(dir).map_err(failed)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let options = Some("mode=0700");
    mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), options).map_err(failed)?;
    tracing::info!(path = %dir.display(), "Mounted a bpffs");
    Ok(())
}

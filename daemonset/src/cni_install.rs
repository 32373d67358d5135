// SPDX-License-Identifier: Apache-2.0
//! Chains `culvert-cni` into the node's container network, and keeps it there.
//!
//! The configuration is a file of our own that sorts first: a copy of the network's ("primary")
//! with our plugin behind it. So nobody's file is changed, and while the agent is away the runtime
//! goes on asking the plugin, which fails closed. It goes with the mesh only.

mod args;
mod chain;
mod changes;
mod directory;
mod files;
mod keeper;
mod list;
mod metrics;
mod pace;

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use culvert_api::kubernetes::CniStatus;
use prometheus::Registry;
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};

pub use self::args::InstallArgs;
use self::{changes::Changes, keeper::Keeper, metrics::Metrics};

/// For file systems and changes that inotify does not see.
const POLL: Duration = Duration::from_secs(10);

/// Who writes in a loop is looked at so often.
const PAUSE: Duration = Duration::from_millis(100);

/// Where what is installed.
#[derive(Clone, Debug)]
pub struct Install {
    /// The runtime's directory of network configurations.
    pub net_dir: PathBuf,
    /// The runtime's directory of plugins.
    pub bin_dir: PathBuf,
    /// The name of our configuration, which is to sort first.
    pub file: String,
    /// The plugin that comes with this agent.
    pub plugin: PathBuf,
    /// Where libcni remembers what it added.
    pub cache_dir: PathBuf,
    /// What the plugin is told.
    pub settings: Settings,
}

/// The fields of our plugin in the chain.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where this agent listens, as the node sees it.
    pub agent_socket: PathBuf,
    /// Where this agent writes down who is unmeshed, as the node sees it.
    pub opt_in_file: PathBuf,
    /// The namespaces whose pods start without the agent.
    pub never_mesh: Vec<String>,
}

/// An installation that is kept.
#[derive(Debug)]
pub struct Kept {
    status: watch::Receiver<CniStatus>,
    stop: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

/// Looks at the files again and again.
trait Look: Send + 'static {
    /// Puts right what is not, and says how long the next repair has to wait, if one does.
    fn look(&mut self, now: Instant) -> Option<Duration>;

    /// Another one, which has seen nothing yet.
    fn anew(&self) -> Self;

    /// Says that one has panicked.
    fn fallen(&self);
}

// === impl Install ===

impl Install {
    /// The name of our plugin.
    pub const PROGRAM: &str = chain::OURS;

    /// Installs, and keeps it so until [`Kept::stop`] or the end of the process. To be called when the agent's socket is
    /// bound: from then on pods need it.
    pub fn keep(self, registry: &Registry) -> Result<Kept, prometheus::Error> {
        let (sender, status) = watch::channel(CniStatus::default());
        let dirs = self.directories().map(Path::to_owned);
        let keeper = Keeper::new(self, Metrics::register(registry)?, sender);
        let (stop, stopped) = oneshot::channel();
        Ok(Kept {
            status,
            stop,
            keeper: tokio::spawn(keep(keeper, dirs, stopped)),
        })
    }

    /// Removes our configuration: the runtime is back to the primary's. Whether it was there.
    pub fn remove_conflist(&self) -> io::Result<bool> {
        files::remove(&self.conflist())
    }

    /// Whether our configuration is not there.
    pub fn is_gone(&self) -> io::Result<bool> {
        match self.conflist().symlink_metadata() {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes our plugin. Whether it was there.
    pub fn remove_program(&self) -> io::Result<bool> {
        files::remove(&self.program())
    }

    /// Where our configuration is.
    pub fn conflist(&self) -> PathBuf {
        self.net_dir.join(&self.file)
    }

    /// Where our plugin is.
    pub fn program(&self) -> PathBuf {
        self.bin_dir.join(chain::OURS)
    }

    fn directories(&self) -> [&Path; 2] {
        [&self.net_dir, &self.bin_dir]
    }
}

// === impl Settings ===

impl Settings {
    /// Our plugin's object in the chain.
    fn entry(&self) -> Value {
        json!({
            "type": chain::OURS,
            "agentSocket": self.agent_socket,
            "optInFile": self.opt_in_file,
            "neverMesh": self.never_mesh,
        })
    }
}

// === impl Kept ===

impl Kept {
    /// How it is. Chained: every pod that starts from now on is the agent's.
    pub fn status(&self) -> watch::Receiver<CniStatus> {
        self.status.clone()
    }

    /// Keeps it no longer. When this returns nothing is written any more.
    pub async fn stop(self) {
        // One that panicked writes nothing either.
        let _ = self.stop.send(());
        drop(self.keeper.await);
    }
}

async fn keep<L: Look>(spare: L, dirs: [PathBuf; 2], stop: oneshot::Receiver<()>) {
    let mut stop = pin!(asked(stop));
    let mut changes = Changes::new();
    let mut keeper = spare.anew();
    loop {
        for dir in &dirs {
            // The keeper says that it is not there; the poll finds out when it is.
            drop(changes.listen(dir));
        }
        let look = move || {
            let wait = keeper.look(Instant::now());
            (keeper, wait)
        };
        let looked = spawn_blocking(look).await;
        let (next, wait) = looked.unwrap_or_else(|_| {
            spare.fallen();
            (spare.anew(), Some(POLL))
        });
        keeper = next;
        let woken = async {
            tokio::time::sleep(PAUSE).await;
            match wait {
                // Until then nothing would be done anyway.
                Some(wait) => tokio::time::sleep(wait).await,
                None => drop(tokio::time::timeout(POLL, changes.next()).await),
            }
        };
        tokio::select! {
            () = woken => {}
            () = &mut stop => return,
        }
    }
}

/// Who only drops the handle wants it kept.
async fn asked(stop: oneshot::Receiver<()>) {
    if stop.await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// Panics at its first look.
    #[derive(Clone)]
    struct Clumsy {
        looks: Arc<AtomicUsize>,
        falls: Arc<AtomicUsize>,
    }

    impl Look for Clumsy {
        fn look(&mut self, _: Instant) -> Option<Duration> {
            let first = self.looks.fetch_add(1, Ordering::SeqCst) == 0;
            assert!(!first, "a test");
            None
        }

        fn anew(&self) -> Self {
            self.clone()
        }

        fn fallen(&self) {
            self.falls.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_that_panics_says_so_and_is_replaced() {
        let clumsy = Clumsy {
            looks: Arc::default(),
            falls: Arc::default(),
        };
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let dirs = [dir.path().to_owned(), dir.path().to_owned()];
        let (stop, stopped) = oneshot::channel();
        let keeping = tokio::spawn(keep(clumsy.clone(), dirs, stopped));
        while clumsy.looks.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(PAUSE).await;
        }
        assert_eq!(clumsy.falls.load(Ordering::SeqCst), 1);
        assert!(stop.send(()).is_ok());
        assert!(keeping.await.is_ok());
    }
}

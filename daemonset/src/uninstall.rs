// SPDX-License-Identifier: Apache-2.0
//! Takes Culvert from the node, so that nothing is left and nobody waits for it.
//!
//! Only when the agent's own DaemonSet is deleted or selects the node no more: whatever else ends
//! the agent leaves its pods steered. When it is deleted proxies and control are still there, so
//! pods leave the mesh with their connections. Each step may fail and has its time; the next is done all the
//! same, and doing all of it again is fine. What the API server says of the node goes last, and
//! only if nothing is left that anybody on the node still has to remove.

mod cache;
mod deadline;
mod own;

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, lchown},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinHandle, spawn_blocking},
    time::Instant,
};

pub use self::own::Own;
use self::{deadline::Deadline, own::Why};
use crate::{
    cni_install::{Install, Kept},
    kubernetes::{self, Cluster},
    pods::Pods,
    proxy_link::hub::Hub,
};

/// For pods to leave the mesh as they do when their annotation goes: half of the time at most.
const WITHDRAW: Duration = Duration::from_secs(60);
/// The same while no proxy is there.
const ALONE: Duration = Duration::from_secs(10);
/// For what is quick.
const STEP: Duration = Duration::from_secs(10);
/// For an agent that is told to go while it starts.
const START: Duration = Duration::from_secs(30);
/// Between two times that the API server is asked the same.
const AGAIN: Duration = Duration::from_secs(1);

/// All that takes Culvert from its node and is there before the agent has started.
#[derive(Debug)]
pub struct Uninstall {
    /// Whose end it is.
    pub own: Own,
    /// The chained configuration and the plugin.
    pub cni: Option<Install>,
    /// The node's name, and the cluster.
    pub node: (String, Cluster),
    /// Files and directories of ours that nobody needs then.
    pub leftovers: Vec<PathBuf>,
    /// How long the agent's pod may take to end.
    pub grace: Duration,
}

/// What an agent that has started does on its node.
#[derive(Debug)]
pub struct Started {
    /// Who keeps the chained configuration.
    pub kept: Option<Kept>,
    /// The pods.
    pub pods: Pods,
    /// Who writes on the node how it stands.
    pub standing: Option<AbortHandle>,
}

/// An uninstallation under way.
#[derive(Debug)]
pub struct Departure {
    of: Uninstall,
    deadline: Deadline,
    /// Whether the chained configuration may be written again: its keeper does not end.
    is_kept: bool,
}

// === impl Uninstall ===

impl Uninstall {
    /// Asked when the agent is told to end: none when it is to leave all as it is.
    pub async fn begin(self) -> Option<Departure> {
        // The rest is for the process to end.
        let deadline = Deadline::after(self.grace * 9 / 10);
        let why: Why = self.own.going().await?;
        tracing::info!(%why, "Culvert is being uninstalled from this node");
        Some(Departure {
            of: self,
            deadline,
            is_kept: false,
        })
    }
}

// === impl Departure ===

impl Departure {
    /// Takes all away that an agent put on its node.
    pub async fn run(mut self, started: Started) {
        if let Some(standing) = &started.standing {
            standing.abort();
        }
        self.unchain(started.kept).await;
        let free = self.free_pods(&started.pods).await;
        let ebpf = &started.pods.shared().ebpf;
        let removed = ebpf.run(|node| node.remove_all());
        let removed = self.step("the pinned programs", removed).await;
        self.clear(free && removed).await;
    }

    /// Takes away what makes pods wait, then lets the agent start, which alone can take its pods
    /// out of the mesh. None: it can't, so all but the chain stays, for the next agent.
    pub async fn start<T>(&mut self, start: impl Future<Output = anyhow::Result<T>>) -> Option<T> {
        tracing::info!("Uninstalling while the agent starts");
        self.unchain(None).await;
        let started = self.deadline.within(START, start).await;
        let error = match started {
            Ok(started) => return Some(started),
            Err(error) => error,
        };
        tracing::error!(
            error,
            "The agent did not start: what it steered before stays steered"
        );
        None
    }

    /// First, so that no pod is made any more that waits for the agent.
    async fn unchain(&mut self, kept: Option<Kept>) {
        let Some(install) = self.of.cni.clone() else {
            return;
        };
        if let Some(kept) = kept {
            let stopped = self.deadline.wait(STEP, kept.stop()).await;
            self.is_kept = stopped.is_err();
        }
        let removed = blocking(move || install.remove_conflist());
        self.step("the CNI configuration", removed).await;
    }

    /// Whether all pods were let go of.
    async fn free_pods(&self, pods: &Pods) -> bool {
        let begun = Instant::now();
        if self.withdraw(pods).await {
            tracing::info!("All pods have left the mesh");
            return true;
        }
        tracing::warn!(
            "Pods have not left the mesh after {} seconds: what goes through the proxy is reset",
            begun.elapsed().as_secs()
        );
        let released = self.deadline.wait(STEP, pods.release_all()).await;
        tracing::info!(pods = released.as_ref().ok(), "Let go of all pods");
        released.is_ok()
    }

    async fn withdraw(&self, pods: &Pods) -> bool {
        let patience = WITHDRAW.min(self.deadline.left() / 2);
        let withdrawn = async {
            tokio::select! {
                () = pods.withdraw_all() => true,
                () = alone(&pods.shared().hub) => false,
            }
        };
        let withdrawn = self.deadline.wait(patience, withdrawn).await;
        withdrawn.unwrap_or(false)
    }

    /// Removes what is needed for as long as anything calls or names it.
    async fn clear(&self, free: bool) {
        if !self.is_unchained().await {
            return self.note_chained();
        }
        self.remove_program().await;
        let leftovers = self.of.leftovers.clone();
        let removed = blocking(move || remove_all(&leftovers));
        self.step("the agent's state", removed).await;
        match free {
            true => self.forget_node().await,
            false => tracing::error!("Left the node's annotation: not all pods are free"),
        }
    }

    fn note_chained(&self) {
        let path = self.of.cni.as_ref().map(Install::conflist);
        tracing::error!(
            path = path.map(|path| path.display().to_string()),
            "Left the CNI plugin, the agent's state and the node's annotation: the CNI \
             configuration is not gone, remove it by hand"
        );
    }

    async fn forget_node(&self) {
        let cleared = self.deadline.within(Duration::MAX, self.clear_node()).await;
        report("taint and annotation", &cleared);
        if cleared.is_ok() {
            tracing::info!("Culvert is uninstalled from this node");
        }
    }

    /// Whether the runtime will never again be told to call the plugin.
    async fn is_unchained(&self) -> bool {
        let Some(install) = self.of.cni.clone() else {
            return true;
        };
        let looked = blocking(move || install.is_gone());
        let gone = self.deadline.within(STEP, looked).await;
        !self.is_kept && gone.unwrap_or(false)
    }

    /// Tries again for as long as there is time.
    async fn clear_node(&self) -> Result<(), kubernetes::NodeError> {
        let (name, cluster) = &self.of.node;
        let node = kubernetes::Node::new(cluster, name);
        loop {
            let objects = cluster.objects().borrow().clone();
            let cleared = node.clear(&objects).await;
            let Err(error) = cleared else { return Ok(()) };
            tracing::warn!(%error, "Could not take taint and annotation from this node yet");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// A DEL that calls a plugin that is gone fails, and the pod is never deleted.
    async fn remove_program(&self) {
        let Some(install) = self.of.cni.clone() else {
            return;
        };
        let is_containerd = self.is_containerd();
        let removed = blocking(move || {
            match cache::names(&install.cache_dir, Install::PROGRAM, is_containerd)? {
                None => install.remove_program().map(drop),
                Some(path) => {
                    tracing::warn!(
                        program = %install.program().display(), cached = %path.display(),
                        "Left the CNI plugin: pods that it was called for will be deleted with it"
                    );
                    Ok(())
                }
            }
        });
        self.step("the CNI plugin", removed).await;
    }

    fn is_containerd(&self) -> bool {
        let (name, cluster) = &self.of.node;
        let objects = cluster.objects().borrow().clone();
        let status = objects.nodes.get(name).and_then(|node| node.status.clone());
        let info = status.and_then(|status| status.node_info);
        info.is_some_and(|info| info.container_runtime_version.starts_with("containerd://"))
    }

    /// Whether it was done in its time.
    async fn step<T, E: std::fmt::Display>(
        &self,
        what: &str,
        step: impl Future<Output = Result<T, E>>,
    ) -> bool {
        let done = self.deadline.within(STEP, step).await;
        report(what, &done);
        done.is_ok()
    }
}

/// Ends when for so long no proxy was there, which alone can tell the pods' peers.
async fn alone(hub: &Hub) {
    let mut last = Instant::now();
    while last.elapsed() < ALONE {
        tokio::time::sleep(AGAIN).await;
        if hub.connected() > 0 {
            last = Instant::now();
        }
    }
}

/// What is a directory goes with all in it; what is gone already is fine.
fn remove_all(paths: &[PathBuf]) -> io::Result<()> {
    let removed: Vec<_> = paths.iter().map(|path| remove(path)).collect();
    removed.into_iter().collect()
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => take(path).and_then(|()| fs::remove_dir_all(path)),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!("{}: {error}", path.display()),
        )),
        Ok(()) => Ok(()),
    }
}

/// The proxy's directory is the proxy's, and root has CAP_CHOWN only. From above, so that who had
/// it changes nothing meanwhile.
fn take(dir: &Path) -> io::Result<()> {
    if fs::symlink_metadata(dir)?.uid() != 0 {
        lchown(dir, Some(0), Some(0))?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            take(&entry.path())?;
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let task: JoinHandle<io::Result<T>> = spawn_blocking(work);
    task.await.map_err(io::Error::other)?
}

fn report<T>(what: &str, removed: &Result<T, String>) {
    match removed {
        Ok(_) => tracing::info!(what, "Removed"),
        Err(error) => tracing::error!(what, error, "Could not remove"),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_is_left_goes_and_what_is_gone_is_fine() {
        let dir = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("state/pods")).unwrap_or_else(|e| panic!("{e}"));
        for name in ["state/pods/a.json", "cni.sock", "others"] {
            fs::write(at(name), "").unwrap_or_else(|e| panic!("{e}"));
        }
        let ours = [at("state"), at("never"), at("cni.sock")];
        for _ in 0..2 {
            remove_all(&ours).unwrap_or_else(|e| panic!("{e}"));
            assert!(!at("state").exists() && !at("cni.sock").exists());
            assert!(at("others").exists());
        }
        // As the proxy leaves it, whatever the agent may do beside CAP_CHOWN.
        fs::create_dir_all(at("proxy/below")).unwrap_or_else(|e| panic!("{e}"));
        for dir in ["proxy/below", "proxy"] {
            lchown(at(dir), Some(2102), Some(2102)).unwrap_or_else(|e| panic!("{e}"));
        }
        take(&at("proxy")).unwrap_or_else(|e| panic!("{e}"));
        let uid = |dir: &str| at(dir).metadata().map(|of| of.uid()).ok();
        assert_eq!((uid("proxy"), uid("proxy/below")), (Some(0), Some(0)));
        let error = remove(&at("others/below")).err();
        assert!(error.is_some_and(|error| error.to_string().contains("others/below")));
    }
}

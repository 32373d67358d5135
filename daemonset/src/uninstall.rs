// SPDX-License-Identifier: Apache-2.0
//! Takes Culvert from the node, so that nothing is left and nobody waits for it.
//!
//! Only when the agent's own DaemonSet is deleted: whatever else ends the agent leaves its pods
//! steered. Proxies and control are still there then, so pods leave the mesh with their
//! connections. Each step may fail and has its time; the next is done all the same, and doing all
//! of it again is fine.

mod cache;
mod own;

use std::{
    fmt::Display,
    fs, io,
    os::unix::fs::{MetadataExt, lchown},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinHandle, spawn_blocking},
    time::timeout,
};

pub use self::own::Own;
use crate::{
    cni_install::{Install, Kept},
    ebpf::Ebpf,
    kubernetes::{self, Cluster},
    pods::Pods,
};

/// For pods to leave the mesh as they do when their annotation goes.
const WITHDRAW: Duration = Duration::from_secs(60);
/// The same while no proxy is there, which tells the pods' peers.
const WITHDRAW_ALONE: Duration = Duration::from_secs(10);
/// For what is quick.
const STEP: Duration = Duration::from_secs(10);

/// All that the agent put on its node.
#[derive(Debug)]
pub struct Uninstall {
    /// Whose end it is.
    pub own: Own,
    /// The chained configuration and the plugin.
    pub cni: Option<(Install, Kept)>,
    /// The pods.
    pub pods: Pods,
    /// The programs.
    pub ebpf: Ebpf,
    /// The node's name, and the cluster.
    pub node: (String, Cluster),
    /// Who writes on the node how it stands.
    pub standing: AbortHandle,
    /// Files and directories of ours that nobody needs then.
    pub leftovers: Vec<PathBuf>,
}

// === impl Uninstall ===

impl Uninstall {
    /// Asked when the agent is told to end.
    pub async fn is_wanted(&self) -> bool {
        self.own.is_going().await
    }

    /// Takes all away. Takes 100 seconds at most.
    pub async fn run(mut self) {
        tracing::info!("Culvert is being uninstalled: its DaemonSet is deleted");
        self.standing.abort();
        let install = self.unchain().await;
        self.free_pods().await;
        let removed = self.ebpf.run(|node| node.remove_all());
        report("the pinned programs", within(STEP, removed).await);
        let leftovers = self.leftovers.clone();
        let removed = spawn_blocking(move || remove_all(&leftovers));
        report("the agent's state", within(STEP, flat(removed)).await);
        let (name, cluster) = &self.node;
        let objects = cluster.objects().borrow().clone();
        let node = kubernetes::Node::new(cluster, name);
        report(
            "taint and annotation",
            within(2 * STEP, node.clear(&objects)).await,
        );
        if let Some(install) = install {
            self.remove_program(install).await;
        }
        tracing::info!("Culvert is uninstalled from this node");
    }

    /// First, so that no pod is made any more that waits for the agent.
    async fn unchain(&mut self) -> Option<Install> {
        let (install, kept) = self.cni.take()?;
        if timeout(STEP, kept.stop()).await.is_err() {
            tracing::error!("The keeper of the CNI configuration does not end");
        }
        let ours = install.clone();
        let removed = spawn_blocking(move || ours.remove_conflist());
        report("the CNI configuration", within(STEP, flat(removed)).await);
        Some(install)
    }

    async fn free_pods(&self) {
        let patience = match self.pods.shared().hub.connected() {
            0 => WITHDRAW_ALONE,
            _ => WITHDRAW,
        };
        if timeout(patience, self.pods.withdraw_all()).await.is_ok() {
            tracing::info!("All pods have left the mesh");
            return;
        }
        let reset = within(STEP, async {
            Ok::<_, io::Error>(self.pods.release_all().await)
        })
        .await;
        tracing::warn!(
            pods = reset.as_ref().ok(),
            "Pods had not left the mesh after {} seconds: what goes through the proxy is reset",
            patience.as_secs()
        );
    }

    /// A DEL that calls a plugin that is gone fails, and the pod is never deleted.
    async fn remove_program(&self, install: Install) {
        let is_containerd = self.is_containerd();
        let removed = spawn_blocking(move || {
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
        report("the CNI plugin", within(STEP, flat(removed)).await);
    }

    fn is_containerd(&self) -> bool {
        let (name, cluster) = &self.node;
        let objects = cluster.objects().borrow().clone();
        let status = objects.nodes.get(name).and_then(|node| node.status.clone());
        let info = status.and_then(|status| status.node_info);
        info.is_some_and(|info| info.container_runtime_version.starts_with("containerd://"))
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

async fn flat<T>(task: JoinHandle<io::Result<T>>) -> io::Result<T> {
    task.await.map_err(io::Error::other)?
}

async fn within<T, E: Display>(
    patience: Duration,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(patience, step).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("it took more than {} seconds", patience.as_secs())),
    }
}

fn report<T>(what: &str, removed: Result<T, String>) {
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

// SPDX-License-Identifier: Apache-2.0
//! The kubelet's cgroup, followed: a kubelet that systemd starts again gets another cgroup of the
//! same name, and one that starts after the agent had none before.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{cgroups, ebpf::Ebpf};

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

/// What a missing kubelet costs.
const COST: &str = "its probes are connections as any other, and fail where a pod lets in only who \
                    proves an identity";

/// By what the kubelet is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// By nothing: probes are connections as any other.
    Unknown,
    /// By its cgroup, as `--kubelet-cgroup` has it. It need not be there yet.
    At(PathBuf),
    /// By the usual names of cgroups.
    Near {
        /// Where the hierarchy is mounted.
        root: PathBuf,
        /// The pods' cgroup.
        pods: PathBuf,
    },
}

/// Follows one kubelet.
struct Follower {
    kubelet: Kubelet,
    /// Where it was when it was last seen.
    last: Option<PathBuf>,
    ebpf: Ebpf,
}

/// Follows the kubelet from the cgroup where it was found at first, on a task of its own. Tells
/// what is wrong.
pub fn follow(
    kubelet: Kubelet,
    first: Option<PathBuf>,
    ebpf: Ebpf,
) -> watch::Receiver<Option<String>> {
    let follower = Follower {
        kubelet,
        last: first,
        ebpf,
    };
    let problem = follower.last.is_none().then(|| follower.missing());
    let is_known = follower.kubelet != Kubelet::Unknown;
    let (sender, receiver) = watch::channel(problem.filter(|_| is_known));
    if is_known {
        tokio::spawn(follower.go_on(sender));
    }
    receiver
}

// === impl Kubelet ===

impl Kubelet {
    /// Its cgroup now. While it is down that is where it was `last`, if that still is: one that is
    /// farther from the pods is another node's of this machine. Blocks.
    pub fn find(&self, last: Option<&Path>) -> Option<PathBuf> {
        match self {
            Self::Unknown => None,
            Self::At(path) => path.is_dir().then(|| path.clone()),
            Self::Near { root, pods } => {
                let last = last.filter(|last| last.is_dir());
                let runs = last.filter(|last| cgroups::is_populated(last));
                let runs = runs.map(Path::to_owned);
                let near = |dir: &Path| cgroups::shared(dir, pods);
                let elsewhere = || {
                    let found = cgroups::kubelet(root, pods);
                    found.filter(|found| last.is_none_or(|last| near(found) >= near(last)))
                };
                runs.or_else(elsewhere).or_else(|| last.map(Path::to_owned))
            }
        }
    }
}

// === impl Follower ===

impl Follower {
    async fn go_on(mut self, problem: watch::Sender<Option<String>>) {
        if let Some(problem) = problem.borrow().as_deref() {
            tell(Some(problem));
        }
        loop {
            sleep(LOOK).await;
            let found = self.look().await.err();
            let modified = *problem.borrow() != found;
            if modified {
                tell(found.as_deref());
                problem.send_replace(found);
            }
        }
    }

    async fn look(&mut self) -> Result<(), String> {
        let (kubelet, last) = (self.kubelet.clone(), self.last.clone());
        let found = spawn_blocking(move || kubelet.find(last.as_deref())).await;
        let found = found.map_err(|error| error.to_string())?;
        let path = found.ok_or_else(|| self.missing())?;
        let cgroup = path.clone();
        let followed = self
            .ebpf
            .run(move |node| node.follow_kubelet(Some(&cgroup)));
        if followed.await.map_err(|error| not_noted(&path, &error))? {
            tracing::info!(cgroup = %path.display(), "The kubelet's cgroup is another one now");
        }
        self.last = Some(path);
        Ok(())
    }

    fn missing(&self) -> String {
        match (&self.kubelet, &self.last) {
            (Kubelet::At(path), _) | (_, Some(path)) => format!(
                "the kubelet's cgroup {} is not there (it is looked for each second): until it is, \
                 {COST}",
                path.display()
            ),
            (_, None) => format!(
                "the kubelet's cgroup was not found (it is looked for each second): {COST}; say it \
                 with --kubelet-cgroup"
            ),
        }
    }
}

fn not_noted(cgroup: &Path, error: &dyn std::error::Error) -> String {
    format!(
        "the kubelet's cgroup {} can't be followed: {error}; {COST}",
        cgroup.display()
    )
}

fn tell(problem: Option<&str>) {
    match problem {
        Some(problem) => tracing::warn!(problem, "Something is wrong with this node"),
        None => tracing::info!("The kubelet's probes are told from other connections"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn make(dir: &Path, populated: bool) {
        let events = format!("populated {}\n", u8::from(populated));
        let made =
            fs::create_dir_all(dir).and_then(|()| fs::write(dir.join("cgroup.events"), events));
        made.unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn a_kubelet_that_is_down_is_where_it_was_until_it_is_elsewhere() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let root = dir.path().to_owned();
        let pods = root.join("kubepods.slice");
        let unit = root.join("system.slice/kubelet.service");
        let other = root.join("system.slice/k3s.service");
        make(&pods, true);
        let kubelet = Kubelet::Near { root, pods };
        assert_eq!(kubelet.find(None), None);
        make(&unit, true);
        assert_eq!(kubelet.find(None), Some(unit.clone()));
        make(&unit, false);
        assert_eq!(kubelet.find(None), None);
        assert_eq!(kubelet.find(Some(&unit)), Some(unit.clone()));
        make(&other, true);
        assert_eq!(kubelet.find(Some(&unit)), Some(other.clone()));
        for dir in [&unit, &other] {
            fs::remove_dir_all(dir).unwrap_or_else(|e| panic!("{e}"));
        }
        assert_eq!(kubelet.find(Some(&other)), None);
    }

    #[test]
    fn the_kubelet_of_another_node_on_the_machine_is_not_taken_for_one_that_is_down() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let root = dir.path().to_owned();
        let pods = root.join("n2/kubepods");
        let [own, other] = ["n2", "n1"].map(|node| root.join(node).join("kubelet"));
        make(&pods, true);
        make(&own, false);
        make(&other, true);
        let kubelet = Kubelet::Near { root, pods };
        assert_eq!(kubelet.find(Some(&own)), Some(own));
    }

    #[test]
    fn what_was_said_is_waited_for() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let path = dir.path().join("kubelet");
        let kubelet = Kubelet::At(path.clone());
        assert_eq!(kubelet.find(None), None);
        make(&path, false);
        assert_eq!(kubelet.find(None), Some(path));
    }
}

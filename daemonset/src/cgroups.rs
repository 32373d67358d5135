// SPDX-License-Identifier: Apache-2.0
//! Where a Kubernetes node has its pods and its kubelet in the unified cgroup hierarchy, for who
//! does not say it.
//!
//! The programs see sockets by the unified hierarchy (cgroup v2) only. On a hybrid node, with
//! controllers on v1, runc puts its containers there too since 1.1
//! (<https://github.com/opencontainers/runc/pull/2087>), below the same path.

use std::{
    cmp::Reverse,
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where the hierarchy is mounted: alone, or beside cgroup v1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Pods are at the root or in a slice or two, as kind and a kubelet's `cgroupRoot` have them.
const PODS_DEPTH: usize = 4;

/// Services are in `system.slice`, `runtime.slice`, `podruntime` and the like.
const KUBELET_DEPTH: usize = 3;

/// Below the pods' cgroup: quality of service, pod, container, what a container makes itself.
const OWN_DEPTH: usize = 8;

/// The cgroups of kubelets, by the names that distributions give them: upstream's and most
/// clouds' unit, k3s, RKE2, k0s, MicroK8s, Ubuntu's snaps, Talos.
const KUBELETS: [&str; 12] = [
    "kubelet.service",
    "k3s.service",
    "k3s-agent.service",
    "rke2-server.service",
    "rke2-agent.service",
    "k0sworker.service",
    "k0scontroller.service",
    "snap.microk8s.daemon-kubelite.service",
    "snap.microk8s.daemon-kubelet.service",
    "snap.kubelet-eks.daemon.service",
    "snap.kubelet.daemon.service",
    "kubelet",
];

/// The cgroups can't be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node's set-up.
    #[error(
        "neither {} nor {} is a cgroup v2 hierarchy: Culvert needs the unified hierarchy, alone or \
         beside cgroup v1 (systemd.unified_cgroup_hierarchy=1), and mounted into this container",
        MOUNTS[0], MOUNTS[1]
    )]
    NoHierarchy,
    /// Not a Kubernetes node, or one that nobody has seen yet.
    #[error(
        "found no cgroup named kubepods or kubepods.slice below {}: say with --cgroup where this \
         node has its pods", root.display()
    )]
    NoPods {
        /// Where was looked.
        root: PathBuf,
    },
    /// Several nodes on one machine.
    #[error(
        "found several cgroups of pods, and this process in none of them: say with --cgroup which \
         is this node's: {}", all.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Several {
        /// All of them.
        all: Vec<PathBuf>,
    },
}

/// Where the unified hierarchy is mounted.
pub fn hierarchy() -> Result<PathBuf, Error> {
    let unified = MOUNTS.iter().map(PathBuf::from).find(|dir| is_unified(dir));
    unified.ok_or(Error::NoHierarchy)
}

/// Whether a directory is in a unified hierarchy.
pub fn is_unified(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Looks for the pods' cgroup below `root`: of several it is the one that `own`, a process of a
/// pod of this node, is in.
pub fn pods(root: &Path, own: u32) -> Result<PathBuf, Error> {
    let mut all = all_pods(root);
    let ours = all
        .iter()
        .position(|pods| has_process(pods, own, OWN_DEPTH));
    match (ours, all.len()) {
        (Some(ours), _) => Ok(all.swap_remove(ours)),
        (None, 0) => Err(Error::NoPods {
            root: root.to_owned(),
        }),
        (None, 1) => Ok(all.swap_remove(0)),
        (None, _) => Err(Error::Several { all }),
    }
}

/// Looks for the kubelet's cgroup below `root`: of several the one that is nearest to the pods,
/// since a machine may have several nodes. One that any pod is in, or that is empty, is none.
pub fn kubelet(root: &Path, pods: &Path) -> Option<PathBuf> {
    let mut all_pods = all_pods(root);
    all_pods.push(pods.to_owned());
    let apart = |dir: &Path| {
        let overlaps = |pods: &PathBuf| pods.starts_with(dir) || dir.starts_with(pods);
        !all_pods.iter().any(overlaps)
    };
    let mut found = Vec::new();
    find(root, KUBELET_DEPTH, &mut |dir| {
        let rank = KUBELETS.iter().position(|name| is_named(dir, name));
        if let Some(rank) = rank.filter(|_| apart(dir) && is_populated(dir)) {
            found.push((Reverse(shared(dir, pods)), rank, dir.to_owned()));
        }
        true
    });
    found.sort();
    found.into_iter().next().map(|(.., dir)| dir)
}

/// How many directories two paths begin with.
pub fn shared(one: &Path, other: &Path) -> usize {
    let pairs = one.components().zip(other.components());
    pairs.take_while(|(one, other)| one == other).count()
}

fn all_pods(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    find(root, PODS_DEPTH, &mut |dir| {
        let is_pods = is_of_pods(dir);
        if is_pods {
            all.push(dir.to_owned());
        }
        !is_pods
    });
    all.sort();
    all
}

/// With systemd a `cgroupRoot` is part of the slice's name.
fn is_of_pods(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| {
        matches!(name, "kubepods" | "kubepods.slice") || name.ends_with("-kubepods.slice")
    })
}

fn is_named(dir: &Path, name: &str) -> bool {
    dir.file_name().is_some_and(|found| found == name)
}

/// Whether it has a process, itself or below: `cgroup.events` of <https://docs.kernel.org/admin-guide/cgroup-v2.html>.
pub fn is_populated(dir: &Path) -> bool {
    let events = fs::read_to_string(dir.join("cgroup.events"));
    events.is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Other namespaces' processes read as 0.
fn has_process(dir: &Path, pid: u32, depth: usize) -> bool {
    let pid = pid.to_string();
    let here = |dir: &Path| {
        let procs = fs::read_to_string(dir.join("cgroup.procs"));
        procs.is_ok_and(|procs| procs.lines().any(|line| line == pid))
    };
    let mut found = here(dir);
    find(dir, depth, &mut |dir| {
        found = found || here(dir);
        !found
    });
    found
}

/// Calls `look` for the directories below `dir`, which says whether to go deeper. What goes away
/// meanwhile is passed over.
fn find(dir: &Path, depth: usize, look: &mut dyn FnMut(&Path) -> bool) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    for path in directories(dir).unwrap_or_default() {
        if look(&path) {
            find(&path, depth, look);
        }
    }
}

fn directories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.push(entry.path());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories as a hierarchy has them; a process where `=pid` is written behind.
    fn hierarchy(dirs: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        for dir in dirs {
            let (dir, pid) = dir.split_once('=').unwrap_or((dir, ""));
            let path = root.path().join(dir);
            let populated = u8::from(!pid.is_empty());
            let made = fs::create_dir_all(&path)
                .and_then(|()| fs::write(path.join("cgroup.procs"), format!("0\n{pid}\n")))
                .and_then(|()| {
                    let events = format!("populated {populated}\nfrozen 0\n");
                    fs::write(path.join("cgroup.events"), events)
                });
            made.unwrap_or_else(|e| panic!("{e}"));
        }
        root
    }

    fn found(dirs: &[&str], own: u32) -> Result<(String, Option<String>), Error> {
        let root = hierarchy(dirs);
        let below = |path: &Path| {
            let path = path.strip_prefix(root.path());
            path.map(|path| path.display().to_string())
                .unwrap_or_default()
        };
        let pods = pods(root.path(), own)?;
        let kubelet = kubelet(root.path(), &pods);
        Ok((below(&pods), kubelet.as_deref().map(below)))
    }

    fn told(dirs: &[&str], own: u32) -> (String, Option<String>) {
        found(dirs, own).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn the_usual_distributions_are_known() {
        for (dirs, pods, kubelet) in [
            (
                [
                    "kubepods.slice/kubepods-pod1.slice/cri=7",
                    "system.slice/kubelet.service=1",
                ],
                "kubepods.slice",
                "system.slice/kubelet.service",
            ),
            (
                [
                    "kubepods/burstable/pod1=7",
                    "system.slice/k3s-agent.service=1",
                ],
                "kubepods",
                "system.slice/k3s-agent.service",
            ),
            (
                ["kubepods.slice/x=7", "runtime.slice/kubelet.service=1"],
                "kubepods.slice",
                "runtime.slice/kubelet.service",
            ),
            (
                [
                    "kubelet.slice/kubelet-kubepods.slice/x=7",
                    "kubelet.slice/kubelet.service=1",
                ],
                "kubelet.slice/kubelet-kubepods.slice",
                "kubelet.slice/kubelet.service",
            ),
            (
                ["kubepods/x=7", "podruntime/kubelet=1"],
                "kubepods",
                "podruntime/kubelet",
            ),
            (
                [
                    "kubepods/x=7",
                    "system.slice/snap.microk8s.daemon-kubelite.service=1",
                ],
                "kubepods",
                "system.slice/snap.microk8s.daemon-kubelite.service",
            ),
        ] {
            let expected = (pods.to_owned(), Some(kubelet.to_owned()));
            assert_eq!(told(&dirs, 7), expected);
        }
    }

    #[test]
    fn of_two_nodes_on_a_machine_it_is_ours() {
        let dirs = [
            "n1/kubepods/besteffort/pod1=",
            "n2/kubepods/besteffort/pod2/c=42",
            "n1/system.slice/kubelet.service=1",
            "n2/system.slice/kubelet.service=2",
        ];
        let kubelet = Some("n2/system.slice/kubelet.service".to_owned());
        assert_eq!(told(&dirs, 42), ("n2/kubepods".to_owned(), kubelet));
        assert!(matches!(found(&dirs, 43), Err(Error::Several { all }) if all.len() == 2));
        assert!(matches!(
            found(&["user.slice"], 43),
            Err(Error::NoPods { .. })
        ));
    }

    #[test]
    fn no_pod_counts_as_the_kubelet() {
        // Its pods are below it, it is empty, and it is one of the pods itself.
        let dirs = [
            "kubelet/kubepods/pod1=7",
            "kubelet=1",
            "system.slice/kubelet.service=",
            "kubelet/kubepods/kubelet.service=8",
        ];
        assert_eq!(told(&dirs, 7), ("kubelet/kubepods".to_owned(), None));
    }

    #[test]
    fn of_two_kubelets_it_is_the_one_that_runs() {
        let dirs = [
            "kubepods/pod1=7",
            "system.slice/kubelet.service",
            "system.slice/k3s.service=1",
        ];
        let kubelet = Some("system.slice/k3s.service".to_owned());
        assert_eq!(told(&dirs, 7).1, kubelet);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Removing all that a sandbox left on the machine, whatever state it was killed in.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::mount::{MntFlags, umount2};

use super::{
    cgroup::{self, Cgroups},
    error::{Doing, Result},
    layout::{Layout, ROOT},
    netns,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// What a new supervisor keeps of an earlier one.
const KEPT: [&str; 6] = [
    "lock",
    "state.json",
    "logs",
    "source",
    "supervisor.pid",
    "captures",
];

/// Ends the processes of a sandbox and removes its namespaces, mounts and cgroups, and of its state
/// all but what a new supervisor needs.
pub fn clear(layout: &Layout, cgroups: &Cgroups) -> Result<()> {
    release(layout, cgroups)?;
    for entry in entries(layout.root()).doing(|| format!("list {}", layout.root().display()))? {
        let kept = KEPT.iter().any(|kept| entry.ends_with(kept)) || is_new_state(&entry);
        if !kept {
            remove_any(&entry).doing(|| format!("remove {}", entry.display()))?;
        }
    }
    Ok(())
}

/// What another `up` is about to put in the place of state.json.
fn is_new_state(entry: &Path) -> bool {
    let name = entry.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("state.") && name.ends_with(".new"))
}

/// Removes all of a sandbox. Says whether there was anything.
pub fn remove(layout: &Layout, cgroups: Option<&Cgroups>) -> Result<bool> {
    let existed = layout.root().exists()
        || !namespaces(layout)?.is_empty()
        || cgroups.is_some_and(|cgroups| cgroups.base().exists());
    if let Some(cgroups) = cgroups {
        release(layout, cgroups)?;
        cgroups.remove_parent();
    }
    let root = layout.root();
    remove_any(root).doing(|| format!("remove {}", root.display()))?;
    remove_empty_parents();
    Ok(existed)
}

/// Ends every process of a sandbox but its supervisor.
pub fn end_processes(cgroups: &Cgroups) -> io::Result<()> {
    let others = entries(cgroups.base())?.into_iter();
    let mut others = others.filter(|dir| dir.is_dir() && *dir != cgroups.kubelet());
    others.try_for_each(|dir| cgroup::kill_all(&dir, PATIENCE))
}

fn release(layout: &Layout, cgroups: &Cgroups) -> Result<()> {
    let base = cgroups.base();
    let doing = || format!("end the processes in {}", base.display());
    cgroup::kill_all(base, PATIENCE).doing(doing)?;
    for name in namespaces(layout)? {
        netns::remove(&name).doing(|| format!("remove the network namespace {name}"))?;
    }
    unmount_below(layout.root()).doing(|| format!("unmount below {}", layout.root().display()))?;
    cgroup::remove(base, PATIENCE).doing(|| format!("remove the cgroup {}", base.display()))
}

/// The namespaces that the sandbox recorded, and those that bear its name and no other sandbox
/// recorded: `cv-a-b-fabric` may be of the sandbox `a-b` or of a pod `fabric` of `a`.
fn namespaces(layout: &Layout) -> Result<BTreeSet<String>> {
    let doing = || "list the network namespaces".to_owned();
    let others = others(layout).doing(doing)?;
    let prefix = format!("cv-{}-", layout.name);
    let mut names: BTreeSet<_> = netns::list().doing(doing)?.into_iter().collect();
    names.retain(|name| name.starts_with(&prefix) && !others.contains(name));
    names.extend(records(layout.root()).doing(doing)?);
    Ok(names)
}

fn others(layout: &Layout) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for root in entries(Path::new(ROOT))? {
        if root != layout.root() {
            names.extend(records(&root)?);
        }
    }
    Ok(names)
}

fn records(root: &Path) -> io::Result<Vec<String>> {
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    Ok(entries(&root.join("netns"))?
        .into_iter()
        .filter_map(name)
        .collect())
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

/// Unmounts every file system below a directory, the latest first.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(1));
    for point in points.map(Path::new).filter(|point| point.starts_with(dir)) {
        umount2(point, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn remove_empty_parents() {
    // Another sandbox may be there: then the kernel refuses, as it should.
    let _ = fs::remove_dir(ROOT);
    let _ = Path::new(ROOT).parent().map(fs::remove_dir);
}

#[cfg(test)]
mod tests;

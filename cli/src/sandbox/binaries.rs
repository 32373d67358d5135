// SPDX-License-Identifier: Apache-2.0
//! The programs that a sandbox is made of, and what else it needs of the machine.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    cgroup::Cgroups,
    cni::find_plugin,
    error::{Doing, Error, Result},
    layout::Name,
    process::is_executable,
};

/// Where distributions put the reference CNI plugins.
const CNI_DIRS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Culvert's own programs, in one directory.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// Where they are.
    pub dir: PathBuf,
}

// === impl Binaries ===

impl Binaries {
    /// Those in `dir`, or beside the running `culvert`.
    pub fn find(dir: Option<&Path>) -> Result<Self> {
        if let Some(dir) = dir {
            let dir = dir
                .canonicalize()
                .doing(|| format!("find {}", dir.display()))?;
            return Ok(Self { dir });
        }
        let exe = std::env::current_exe().doing(|| "find the culvert program".into())?;
        let dir = exe.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { dir })
    }

    /// A program's path.
    pub fn path(&self, program: &str) -> PathBuf {
        self.dir.join(program)
    }

    /// Where CNI plugins are looked for: Culvert's own first.
    pub fn cni_dirs(&self) -> Vec<PathBuf> {
        let others = CNI_DIRS.iter().map(PathBuf::from);
        std::iter::once(self.dir.clone()).chain(others).collect()
    }

    fn missing(&self) -> Vec<String> {
        let programs = [
            "culvert-control",
            "culvert-agent",
            "culvert-proxy",
            "culvert-cni",
        ];
        let missing = programs
            .iter()
            .filter(|program| !is_executable(&self.path(program)));
        let mut missing: Vec<_> = missing
            .map(|program| {
                let dir = self.dir.display();
                format!("no program {program} in {dir}: build it, or say --bin-dir DIR")
            })
            .collect();
        for plugin in ["bridge", "host-local"] {
            if find_plugin(&self.cni_dirs(), plugin).is_none() {
                let dirs = CNI_DIRS.join(", ");
                missing.push(format!(
                    "no CNI plugin {plugin} in {dirs}: apt-get install containernetworking-plugins"
                ));
            }
        }
        missing
    }
}

/// Looks for all that a sandbox needs, and names all that is missing in one error.
pub fn check(binaries: &Binaries, name: &Name) -> Result<Cgroups> {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("network namespaces, cgroups and eBPF need root: use sudo".to_owned());
    }
    missing.extend(binaries.missing());
    let cgroups = Cgroups::find(name).doing(|| "read /proc/mounts".into())?;
    if cgroups.is_none() {
        missing.push("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup".to_owned());
    }
    if !has_bpf_file_system().doing(|| "read /proc/filesystems".into())? {
        missing.push("the kernel has no bpf file system (CONFIG_BPF_SYSCALL)".to_owned());
    }
    cgroups
        .filter(|_| missing.is_empty())
        .ok_or(Error::Machine { missing })
}

fn has_bpf_file_system() -> io::Result<bool> {
    let file_systems = fs::read_to_string("/proc/filesystems")?;
    Ok(file_systems.lines().any(|line| line.ends_with("\tbpf")))
}

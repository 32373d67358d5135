// SPDX-License-Identifier: Apache-2.0
//! What a test needs of the machine. A skip is earned on a developer's machine and a failure in CI.

use std::{env, fs, path::Path};

use anyhow::bail;

use crate::{cluster, programs};

/// The user that runs the tests must be root.
pub fn root() -> anyhow::Result<bool> {
    earned(
        nix::unistd::geteuid().is_root(),
        "root: namespaces, eBPF and cgroups need it",
    )
}

/// A program must be installed.
pub fn program(name: &str) -> anyhow::Result<bool> {
    let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = dirs.iter().any(|dir| Path::new(dir).join(name).exists());
    earned(found, &format!("the program {name}"))
}

/// All of these programs must be installed, and the user must be root.
pub fn programs(names: &[&str]) -> anyhow::Result<bool> {
    names
        .iter()
        .try_fold(root()?, |there, name| Ok(program(name)? && there))
}

/// The server of PostgreSQL must be installed, which Debian keeps in a directory per version.
pub fn postgres() -> anyhow::Result<bool> {
    let versions = fs::read_dir("/usr/lib/postgresql");
    let mut versions = versions.into_iter().flatten().flatten();
    let found = versions.any(|version| version.path().join("bin/postgres").exists());
    earned(found, "PostgreSQL's server")
}

/// What the tests' Python programs need of PyPI must be installed, which `scripts/setup test` sees to.
pub fn python() -> anyhow::Result<bool> {
    let complete = programs::venv().join("complete");
    earned(complete.exists(), "tests/programs/requirements.txt")
}

/// The Kubernetes of `tests/kubernetes` must be built, and the images must be made.
pub fn kubernetes() -> anyhow::Result<bool> {
    let built = Path::new(cluster::ROOT).join("bin/kube-apiserver");
    earned(built.exists(), "a Kubernetes: tests/kubernetes/setup.sh")
}

/// Whether the test can run. Without CI a missing thing skips it, loudly; with CI it fails.
fn earned(there: bool, what: &str) -> anyhow::Result<bool> {
    if !there && env::var_os("CI").is_some() {
        bail!("CI is set and this machine lacks {what}");
    }
    if !there {
        eprintln!("SKIPPED: this machine lacks {what}");
    }
    Ok(there)
}

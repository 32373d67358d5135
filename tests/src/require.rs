// SPDX-License-Identifier: Apache-2.0
//! What a test needs of the machine. A skip is earned on a developer's machine and a failure in CI.

use std::{env, path::Path};

use anyhow::bail;

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

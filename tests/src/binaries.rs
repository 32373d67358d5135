// SPDX-License-Identifier: Apache-2.0
//! Where the built programs are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// The variable that names another directory of binaries.
pub const BIN_DIR: &str = "CULVERT_BIN_DIR";

/// A product binary: in `CULVERT_BIN_DIR`, else in `target/release`.
pub fn product(name: &str) -> anyhow::Result<PathBuf> {
    let dir = match env::var_os(BIN_DIR) {
        Some(dir) => PathBuf::from(dir),
        None => target()?.join("release"),
    };
    existing(&dir, name, "cargo build --release --workspace")
}

/// `culvert-testapp`, which cargo builds together with the test.
pub fn testapp() -> anyhow::Result<PathBuf> {
    let exe = env::current_exe()?;
    let profile = exe
        .parent()
        .and_then(Path::parent)
        .context("the test is not in target/")?;
    existing(profile, "culvert-testapp", "cargo test -p culvert-tests")
}

fn existing(dir: &Path, name: &str, make: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(name);
    if !path.exists() {
        bail!(
            "{} does not exist: run `{make}` or set {BIN_DIR}",
            path.display()
        );
    }
    Ok(path)
}

/// The test is `target/<profile>/deps/<test>-<hash>`.
fn target() -> anyhow::Result<PathBuf> {
    let exe = env::current_exe()?;
    let target = exe
        .ancestors()
        .nth(3)
        .context("the test is not in target/")?;
    Ok(target.to_owned())
}

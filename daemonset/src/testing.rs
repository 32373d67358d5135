// SPDX-License-Identifier: Apache-2.0
//! Namespaces for tests, made with `ip netns` and gone with their guard.

use std::{path::Path, path::PathBuf, process::Command};

/// A namespace of a name that no other test and no other run has.
#[derive(Debug)]
pub struct TestNetns {
    name: String,
    path: PathBuf,
}

impl TestNetns {
    /// Makes one, with `lo` down and no address.
    pub fn new(label: &str) -> Self {
        let name = format!("cva-{label}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        let path = Path::new("/run/netns").join(&name);
        Self { name, path }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `ip -n <this namespace> ARGS`, which must succeed, and returns what it printed.
    pub fn ip(&self, args: &str) -> String {
        self.try_ip(args)
            .unwrap_or_else(|e| panic!("ip {args}: {e}"))
    }

    /// Runs `ip -n <this namespace> ARGS`, and returns what it printed or complained about.
    pub fn try_ip(&self, args: &str) -> Result<String, String> {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split_whitespace());
        try_ip(&all)
    }
}

impl Drop for TestNetns {
    fn drop(&mut self) {
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("could not delete the namespace {}", self.name);
        }
    }
}

fn ip(args: &[&str]) {
    try_ip(args).unwrap_or_else(|e| panic!("ip {args:?}: {e}"));
}

fn try_ip(args: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(args).output();
    let output = output.map_err(|e| e.to_string())?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

// SPDX-License-Identifier: Apache-2.0
//! podman, which knows nothing of Kubernetes, on the network of a node.

use std::{fs, time::Duration};

use anyhow::Context as _;

use super::{
    image::{APP, TESTAPP},
    space::Space,
};
use crate::{
    app::report::Report,
    process::{Output, run},
};

/// The network of the node's conflist.
pub const NETWORK: &str = "culvert-sandbox";
/// It has 50 bytes at most, and is in the `/run` of the runtimes.
const RUN: &str = "/run/podman";
const PATIENCE: Duration = Duration::from_secs(120);

/// podman with a storage and a configuration of its own. Its containers end when dropped: their
/// network namespaces are where the machine has its own.
#[derive(Debug)]
pub struct Podman<'a> {
    space: &'a Space,
}

// === impl Podman ===

impl<'a> Podman<'a> {
    /// With containerd's network and image.
    pub fn new(space: &'a Space) -> anyhow::Result<Self> {
        let dir = space.path("podman/net");
        fs::create_dir_all(&dir)?;
        let name = "10-culvert.conflist";
        fs::copy(space.path("cni/net.d").join(name), dir.join(name))?;
        fs::write(space.path("podman/containers.conf"), config(space))?;
        let podman = Self { space };
        let archive = space.path("app.tar").display().to_string();
        podman.run(&["load", "--input", &archive])?.ok()?;
        Ok(podman)
    }

    /// Runs podman.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.run_with("", args)
    }

    /// Runs podman, which adds these `CNI_ARGS` to its own.
    fn run_with(&self, cni_args: &str, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.space.command("podman");
        command
            .env("CNI_ARGS", cni_args)
            .env("CONTAINERS_CONF", self.space.path("podman/containers.conf"))
            .args([
                "--root".as_ref(),
                self.space.path("podman/root").as_os_str(),
            ])
            .args(["--runroot", RUN])
            .args(args);
        run(&mut command, PATIENCE)
    }

    /// Runs a program in a container of its own to the program's end.
    pub fn container(&self, network: &str, command: &[&str]) -> anyhow::Result<Output> {
        let cgroup = self.space.cgroup("podman");
        let args = ["run", "--rm", "--pull", "never", "--network", network];
        let args = [&args[..], &["--cgroup-parent", &cgroup, APP], command].concat();
        self.run(&args)
    }

    /// Runs `culvert-testapp connect` in a container of its own.
    pub fn connect(&self, network: &str, at: &str, flags: &[&str]) -> anyhow::Result<Report> {
        let command = [&[TESTAPP, "connect", at], flags].concat();
        self.container(network, &command)?.json()
    }

    /// Starts a container that goes on, with more `CNI_ARGS`, and answers its address.
    pub fn start(&self, name: &str, cni_args: &str, command: &[&str]) -> anyhow::Result<String> {
        let cgroup = self.space.cgroup("podman");
        let args = ["run", "--detach", "--pull", "never", "--name", name];
        let options = ["--network", NETWORK, "--cgroup-parent", &cgroup, APP];
        let args = [&args[..], &options, command].concat();
        self.run_with(cni_args, &args)?.ok()?;
        let format = format!("{{{{(index .NetworkSettings.Networks {NETWORK:?}).IPAddress}}}}");
        let shown = self.run(&["inspect", "--format", &format, name])?.ok()?;
        let ip = shown.stdout.trim().to_owned();
        Some(ip).filter(|ip| !ip.is_empty()).context("no address")
    }

    /// Kills a container and removes it.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        self.run(&["rm", "--force", "--time", "0", name])?.ok()?;
        Ok(())
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let removed = self.run(&["rm", "--all", "--force", "--time", "0"]);
        if let Err(error) = removed.and_then(Output::ok) {
            eprintln!("the end of podman's containers: {error:#}");
        }
    }
}

fn config(space: &Space) -> String {
    let at = |name| space.path(name).display().to_string();
    format!(
        r#"[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin}"]
network_config_dir = "{net}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
tmp_dir = "{RUN}/tmp"
"#,
        bin = at("cni/bin"),
        net = at("podman/net"),
    )
}

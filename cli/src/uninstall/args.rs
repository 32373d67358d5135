// SPDX-License-Identifier: Apache-2.0
//! `culvert uninstall` as it is written.

use std::time::Duration;

use clap::Args;

use crate::cluster::ClusterArgs;

/// `culvert uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Delete nothing, but print what may be deleted now, for kubectl delete --cascade=foreground -f -.
    ///
    /// While the agents are there that is their DaemonSet alone, since only they can take pods out of the
    /// mesh, and need the rest for that. Once it is gone, the same command prints the rest.
    #[arg(long)]
    pub manifests: bool,
    /// Say what would go, and what would stay, and change nothing.
    #[arg(long, conflicts_with = "manifests")]
    pub dry_run: bool,
    /// Do not ask. Without a terminal to ask on, nothing is done unless this is said.
    #[arg(short, long)]
    pub yes: bool,
    /// How long each step may take, e.g. 10m.
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Go on when agents don't end in time, e.g. on nodes that are down. Those nodes keep their links, rules
    /// and files until they are rebooted or cleaned by hand, and their pods stay steered.
    #[arg(long)]
    pub force: bool,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

// SPDX-License-Identifier: Apache-2.0
//! `culvert check` and `culvert version` as they are written.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cluster::ClusterArgs;

/// `check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    culvert check --pre                 before `culvert install`\n  \
    culvert check --wait 5m             after it: until everything is ready\n  \
    culvert check -n shop -o short      what is wrong, with the pods of one namespace\n\n\
    Exit status: 0 if nothing failed, warnings or not; 1 if something failed; 64 for bad usage.")]
pub struct Check {
    /// Check whether Culvert can be installed, instead of what is installed.
    #[arg(long)]
    pub pre: bool,
    /// Check only the data plane: the nodes and their pods.
    #[arg(long, conflicts_with = "pre")]
    pub proxy: bool,
    /// Check the pods of this namespace only; of all by default.
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "pre")]
    pub namespace: Option<String>,
    /// How long to wait for what is not ready yet, e.g. 90s or 5m; 0s looks once.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub wait: Duration,
    /// How to print it: short has only what is not well.
    #[arg(short, long, default_value = "table")]
    pub output: Output,
    /// The release that should run; that of this program by default.
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"), hide_default_value = true)]
    pub expected_version: String,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// `version`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    culvert version\n  \
    culvert version --client --short    only the version of this program")]
pub struct Version {
    /// Do not ask the cluster.
    #[arg(long)]
    pub client: bool,
    /// Only the versions, one a line: client, control, data plane.
    #[arg(long)]
    pub short: bool,
    /// How to print it.
    #[arg(short, long, default_value = "table", conflicts_with = "short")]
    pub output: crate::args::Format,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// How to print a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// Only what is not well.
    Short,
    /// For programs, in the form of `linkerd check -o json`.
    Json,
}

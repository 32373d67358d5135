// SPDX-License-Identifier: Apache-2.0
//! `culvert install` and `culvert upgrade` as they are written.

use std::path::PathBuf;

use clap::Args;

use crate::cluster::ClusterArgs;

/// `culvert install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// What to install.
    #[command(flatten)]
    pub values: ValuesArgs,
    /// Ask no cluster: neither which version it has, nor whether Culvert is in it already.
    #[arg(long)]
    pub ignore_cluster: bool,
    /// The version of Kubernetes, where no cluster is asked.
    #[arg(long, value_name = "VERSION", default_value = crate::chart::KUBERNETES, requires = "ignore_cluster")]
    pub kube_version: String,
    /// Keep the key of the trust anchor that is made, in a new file; it is thrown away otherwise. It
    /// signs the next issuer without a change of the anchor.
    #[arg(long, value_name = "FILE")]
    pub keep_trust_anchor_key: Option<PathBuf>,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// `culvert upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// What to change.
    #[command(flatten)]
    pub values: ValuesArgs,
    /// Forget the values of earlier installs and upgrades.
    #[arg(long)]
    pub reset_values: bool,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Values that are not the chart's defaults. Later ones count.
#[derive(Debug, Default, Args)]
pub struct ValuesArgs {
    /// Three replicas of control on three nodes.
    #[arg(long)]
    pub ha: bool,
    /// A YAML file with values, - for standard input; may be repeated.
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A value, e.g. control.replicas=2; may be repeated, or hold several with commas.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// The same, but always text.
    #[arg(long, value_name = "PATH=TEXT")]
    pub set_string: Vec<String>,
    /// The same, from a file.
    #[arg(long, value_name = "PATH=FILE")]
    pub set_file: Vec<String>,
    /// Your own trust anchors in PEM, instead of one made now.
    #[arg(long, value_name = "FILE")]
    pub identity_trust_anchors_file: Option<PathBuf>,
    /// Your own issuer's certificate in PEM.
    #[arg(long, value_name = "FILE", requires = "identity_issuer_key_file")]
    pub identity_issuer_certificate_file: Option<PathBuf>,
    /// The key of your own issuer in PEM.
    #[arg(
        long,
        value_name = "FILE",
        requires = "identity_issuer_certificate_file"
    )]
    pub identity_issuer_key_file: Option<PathBuf>,
}

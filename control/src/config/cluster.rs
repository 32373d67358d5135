// SPDX-License-Identifier: Apache-2.0
//! Whose control plane it is: that of a directory, or of a Kubernetes.

use std::{fs, path::PathBuf};

use clap::Args;

/// Linux' name of the host, a pod's own in its UTS namespace.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// The flags, of which either a directory or a Kubernetes is made.
#[derive(Clone, Debug, Args)]
pub(super) struct ClusterArgs {
    /// Directory of Kubernetes manifests (*.yaml, *.yml, *.json) that is the cluster. Changes are
    /// picked up live; a broken file is refused and its last good content stays.
    #[arg(long, env = "CULVERT_MANIFESTS", value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Directory for the trust anchor, the issuer and what nodes reported. Made on the first run;
    /// `trust-anchors.pem` in it is public. Needed with --manifests.
    #[arg(long, env = "CULVERT_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// JSON file {"<node>": "<SHA-256 of its join token, in hex>"}. Read again when it changes.
    /// Needed with --manifests.
    #[arg(long, env = "CULVERT_JOIN_TOKENS", value_name = "FILE")]
    join_tokens: Option<PathBuf>,
    /// The cluster is a Kubernetes, instead of a directory: the one that control runs in, or the
    /// one of the usual kubeconfig. It keeps what nodes report, and vouches for them.
    #[arg(long, env = "CULVERT_KUBERNETES")]
    kubernetes: bool,
    /// How to reach that Kubernetes, instead of the usual places.
    #[arg(long, env = "CULVERT_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// What tells this replica of control from the others on Kubernetes, such as the pod's name.
    /// Default: the name of the host.
    #[arg(long, env = "CULVERT_REPLICA", value_name = "NAME")]
    replica: Option<String>,
}

/// Where the objects are, who vouches for nodes, and where is kept what they report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// Files.
    Directory(Directory),
    /// A Kubernetes, which is all three.
    Kubernetes(Kubernetes),
}

/// A cluster of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The directory of the objects.
    pub manifests: PathBuf,
    /// The hashes of the nodes' tokens.
    pub join_tokens: PathBuf,
    /// Where to keep the authority and the reports.
    pub state_dir: PathBuf,
}

/// A Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// How to reach it, instead of the usual places.
    pub kubeconfig: Option<PathBuf>,
    /// What tells this replica from the others: a DNS label.
    pub replica: String,
}

// === impl Cluster ===

impl Cluster {
    pub(super) fn of(args: ClusterArgs) -> Result<Self, String> {
        match (args.manifests.is_some(), args.kubernetes) {
            (true, false) => Directory::of(args).map(Self::Directory),
            (false, true) => Kubernetes::of(args).map(Self::Kubernetes),
            (false, false) => {
                Err("--manifests DIR or --kubernetes: got neither, expected one of them".to_owned())
            }
            (true, true) => {
                Err("--manifests and --kubernetes: got both, expected one of them".to_owned())
            }
        }
    }
}

// === impl Directory ===

impl Directory {
    fn of(args: ClusterArgs) -> Result<Self, String> {
        if args.kubeconfig.is_some() {
            return Err(
                "--kubeconfig: got one with --manifests, expected it with --kubernetes only"
                    .to_owned(),
            );
        }
        let needed = |flag: &str, value: Option<PathBuf>| {
            value.ok_or_else(|| format!("{flag}: got none, expected one with --manifests"))
        };
        Ok(Self {
            manifests: args.manifests.unwrap_or_default(),
            state_dir: needed("--state-dir", args.state_dir)?,
            join_tokens: needed("--join-tokens", args.join_tokens)?,
        })
    }
}

// === impl Kubernetes ===

impl Kubernetes {
    fn of(args: ClusterArgs) -> Result<Self, String> {
        for (flag, given) in [
            ("--state-dir", args.state_dir.is_some()),
            ("--join-tokens", args.join_tokens.is_some()),
        ] {
            if given {
                return Err(format!(
                    "{flag}: got one with --kubernetes, expected it with --manifests only"
                ));
            }
        }
        let replica = match args.replica {
            Some(replica) => replica,
            None => host_name()?,
        };
        Ok(Self {
            kubeconfig: args.kubeconfig,
            replica: super::dns("--replica", &replica)?,
        })
    }
}

fn host_name() -> Result<String, String> {
    let name = fs::read_to_string(HOST_NAME).map_err(|error| {
        format!("--replica: got none, and the host's name can't be read: {HOST_NAME}: {error}")
    })?;
    Ok(name.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    fn cluster(flags: &[&str]) -> Result<Cluster, String> {
        let flags = Flags::try_parse_from(["control"].iter().chain(flags));
        Cluster::of(flags.unwrap_or_else(|e| panic!("{e}")).cluster)
    }

    #[test]
    fn it_is_a_directory_or_a_kubernetes() {
        let directory = cluster(&["--manifests=m", "--state-dir=s", "--join-tokens=t"]);
        assert!(
            matches!(directory, Ok(Cluster::Directory(_))),
            "{directory:?}"
        );
        let expected = Kubernetes {
            kubeconfig: Some("k".into()),
            replica: "r-1".to_owned(),
        };
        let kubernetes = cluster(&["--kubernetes", "--kubeconfig=k", "--replica=r-1"]);
        assert_eq!(kubernetes, Ok(Cluster::Kubernetes(expected)));
        let unnamed = cluster(&["--kubernetes"]);
        assert!(unnamed.is_ok(), "the host has a name: {unnamed:?}");
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        for (flags, named) in [
            (&[][..], "got neither"),
            (&["--manifests=m", "--kubernetes"], "got both"),
            (
                &["--manifests=m", "--join-tokens=t"],
                "--state-dir: got none",
            ),
            (
                &["--manifests=m", "--state-dir=s"],
                "--join-tokens: got none",
            ),
            (
                &["--manifests=m", "--kubeconfig=k"],
                "--kubeconfig: got one",
            ),
            (&["--kubernetes", "--state-dir=s"], "--state-dir: got one"),
            (
                &["--kubernetes", "--join-tokens=t"],
                "--join-tokens: got one",
            ),
            (&["--kubernetes", "--replica=A B"], "--replica: got \"A B\""),
        ] {
            let mistake = cluster(flags).err().unwrap_or_default();
            assert!(mistake.contains(named), "{flags:?}: {mistake}");
        }
    }
}

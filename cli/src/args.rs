// SPDX-License-Identifier: Apache-2.0
//! The command line as it is written.

use std::io;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

mod sandbox;

pub use self::sandbox::*;

use crate::{
    check::{CheckArgs, VersionArgs},
    inject::{InjectArgs, UninjectArgs},
    install::{InstallArgs, UpgradeArgs},
    uninstall::UninstallArgs,
};

/// Culvert, a service mesh that runs under the pods of a node.
#[derive(Debug, Parser)]
#[command(
    name = "culvert",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "See it on this machine:   culvert sandbox demo\n\
    Have it in a cluster:     culvert check --pre\n                          \
    culvert install | kubectl apply -f -\n                          \
    culvert check --wait 5m\n                          \
    kubectl annotate namespace NAME culvert.io/inject=enabled")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A small mesh on this machine, without Kubernetes
    ///
    /// Nodes and pods are network namespaces; the agent, the proxy, control and the CNI plugin are
    /// the real programs. Nothing is set up in the machine's own network, and `down` leaves nothing.
    Sandbox(Sandbox),
    /// Print the manifests that install Culvert, for kubectl apply
    ///
    /// They are those of the Helm chart. A trust anchor and an issuer are made unless they are given; the
    /// issuer's key is in the Secret that is printed and nowhere else. The cluster is asked for its version and whether
    /// Culvert is there already; nothing in it is changed.
    #[command(after_help = "Examples:\n  \
        culvert install | kubectl apply -f -\n  \
        culvert install --ha --set platform=k3s | kubectl apply -f -\n  \
        culvert install -f values.yaml --ignore-cluster > culvert.yaml\n\n\
        Then:  culvert check\n\n\
        All values, with comments: daemonset/chart/values.yaml")]
    Install(Box<InstallArgs>),
    /// Print the manifests that bring an installation to this release, or to other values
    ///
    /// Values of earlier installs and upgrades are kept in the cluster and still count, and so do its trust
    /// anchors and issuer: its Secret is printed only if another issuer is given. No meshed pod restarts.
    #[command(after_help = "Examples:\n  \
        culvert upgrade | kubectl apply -f -\n  \
        culvert upgrade --set control.replicas=2 | kubectl apply -f -")]
    Upgrade(Box<UpgradeArgs>),
    /// Take Culvert out of a cluster
    ///
    /// The agents go first: they take every pod of their nodes out of the mesh, live, and remove links, rules,
    /// routes, files and taints; meanwhile proxies and control go on serving. Then all the rest goes. Pods keep
    /// running; what they say to each other is plaintext from then on. What goes, and from which cluster, is said and
    /// asked about first. Culvert's namespace stays while anything in it is not Culvert's.
    #[command(after_help = "Examples:\n  \
        culvert uninstall --dry-run\n  \
        culvert uninstall --yes\n  \
        culvert uninstall --manifests | kubectl delete --cascade=foreground -f -   (twice)")]
    Uninstall(UninstallArgs),
    /// Annotate manifests so that their pods are meshed
    ///
    /// Namespaces, pods, and the templates of deployments and other workloads get culvert.io/inject: enabled; the
    /// result is on standard output, a report on standard error, and comments stay. No container is added. To mesh what runs already,
    /// annotate it in the cluster; its pods don't restart for it.
    #[command(after_help = "Examples:\n  \
        culvert inject web.yaml | kubectl apply -f -\n  \
        kubectl get deploy -o yaml | culvert inject - | kubectl apply -f -\n  \
        culvert inject --default-inbound-policy all-authenticated manifests/\n  \
        kubectl annotate namespace shop culvert.io/inject=enabled     the same, live, for all of a namespace")]
    Inject(InjectArgs),
    /// Take the annotation off again
    ///
    /// That is culvert.io/inject. linkerd.io/inject, ports and policies stay, since others may have written them, unless --all
    /// is said.
    #[command(after_help = "Examples:\n  \
        culvert uninject web.yaml | kubectl apply -f -")]
    Uninject(UninjectArgs),
    /// Check whether Culvert can be installed (--pre), or works
    ///
    /// One line for each check: √ it is as it should be, ‼ somebody should look, × it does not work,
    /// with what was found and what to do. Reads only; asks the API server and nothing else.
    Check(CheckArgs),
    /// Print the versions of this program, of control and of the data plane
    Version(VersionArgs),
    /// Print the completions of a shell
    #[command(after_help = "Examples:\n  \
        culvert completion bash > /etc/bash_completion.d/culvert\n  \
        culvert completion zsh > ~/.zfunc/_culvert")]
    Completion {
        /// For which shell.
        shell: Shell,
    },
}

/// Prints the completions of a shell.
pub fn complete(shell: Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "culvert", &mut io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The flags of the CNI installation.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Install, Settings};

/// What to install where. Distributions that are not where most are: k3s
/// (/var/lib/rancher/k3s/agent/etc/cni/net.d, /var/lib/rancher/k3s/data/cni), GKE
/// (/home/kubernetes/bin), MicroK8s (/var/snap/microk8s/current/args/cni-network,
/// /var/snap/microk8s/current/opt/cni/bin), OpenShift (/etc/kubernetes/cni/net.d,
/// /var/lib/cni/bin).
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// Chain culvert-cni into the node's container network, and keep it there. The default with
    /// --kubernetes.
    #[arg(
        long,
        env = "CULVERT_INSTALL_CNI",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    install_cni: Option<bool>,
    /// The container runtime's directory of network configurations.
    #[arg(
        long,
        env = "CULVERT_CNI_NET_DIR",
        value_name = "DIR",
        default_value = "/etc/cni/net.d"
    )]
    cni_net_dir: PathBuf,
    /// The container runtime's directory of CNI plugins.
    #[arg(
        long,
        env = "CULVERT_CNI_BIN_DIR",
        value_name = "DIR",
        default_value = "/opt/cni/bin"
    )]
    cni_bin_dir: PathBuf,
    /// The name of our network configuration: it must sort before all others.
    #[arg(
        long,
        env = "CULVERT_CNI_CONFLIST",
        value_name = "FILE",
        default_value = "00-culvert.conflist"
    )]
    cni_conflist: String,
    /// The culvert-cni to install.
    #[arg(
        long,
        env = "CULVERT_CNI_PLUGIN",
        value_name = "FILE",
        default_value = "/opt/culvert/bin/culvert-cni"
    )]
    cni_plugin: PathBuf,
    /// Where CNI results are remembered: at uninstall the plugin stays while somebody will call it.
    #[arg(
        long,
        env = "CULVERT_CNI_CACHE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/cni"
    )]
    cni_cache_dir: PathBuf,
}

// === impl InstallArgs ===

impl InstallArgs {
    /// What is to be installed; none: nothing.
    pub fn install(
        self,
        kubernetes: bool,
        (run_dir, state_dir): (&Path, &Path),
        never_mesh: &BTreeSet<String>,
    ) -> Result<Option<Install>, String> {
        if !self.install_cni.unwrap_or(kubernetes) {
            return Ok(None);
        }
        let all = [
            ("--run-dir", run_dir),
            ("--state-dir", state_dir),
            ("--cni-net-dir", &self.cni_net_dir),
            ("--cni-bin-dir", &self.cni_bin_dir),
        ];
        all.into_iter().try_for_each(absolute)?;
        Ok(Some(Install {
            file: conflist(self.cni_conflist)?,
            net_dir: self.cni_net_dir,
            bin_dir: self.cni_bin_dir,
            plugin: self.cni_plugin,
            cache_dir: self.cni_cache_dir,
            settings: Settings {
                agent_socket: run_dir.join("cni.sock"),
                opt_in_file: state_dir.join("opt-in.json"),
                never_mesh: never_mesh.iter().cloned().collect(),
            },
        }))
    }
}

/// The plugin has another working directory.
fn absolute((flag, path): (&str, &Path)) -> Result<(), String> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err(format!(
            "{flag}: got {}, expected an absolute path",
            path.display()
        )),
    }
}

fn conflist(name: String) -> Result<String, String> {
    match name.strip_suffix(".conflist") {
        Some(stem) if !stem.is_empty() && !name.contains('/') => Ok(name),
        _ => Err(format!(
            "--cni-conflist: got {name:?}, expected a file's name that ends in .conflist"
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        install: InstallArgs,
    }

    fn install(kubernetes: bool, flags: &[&str]) -> Result<Option<Install>, String> {
        let all = ["agent"].iter().chain(flags);
        let flags = Flags::try_parse_from(all).unwrap_or_else(|e| panic!("{e}"));
        let dirs = (
            Path::new("/run/culvert"),
            Path::new("/var/lib/culvert/agent"),
        );
        let never_mesh = BTreeSet::from(["culvert".to_owned()]);
        flags.install.install(kubernetes, dirs, &never_mesh)
    }

    #[test]
    fn a_cluster_is_chained_and_a_sandbox_is_not() {
        for (kubernetes, flags, expected) in [
            (true, &[][..], true),
            (false, &[], false),
            (true, &["--install-cni=false"], false),
            (false, &["--install-cni"], true),
        ] {
            let got = install(kubernetes, flags).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(got.is_some(), expected, "{kubernetes} {flags:?}");
        }
        let got = install(true, &[]).unwrap_or_else(|e| panic!("{e}"));
        let got = got.unwrap_or_else(|| panic!("nothing to install"));
        assert_eq!(
            got.conflist(),
            Path::new("/etc/cni/net.d/00-culvert.conflist")
        );
        assert_eq!(got.program(), Path::new("/opt/cni/bin/culvert-cni"));
        assert_eq!(
            got.settings.agent_socket,
            Path::new("/run/culvert/cni.sock")
        );
    }

    #[test]
    fn mistakes_name_their_flag() {
        for (flag, value) in [
            ("--cni-net-dir", "net.d"),
            ("--cni-bin-dir", "bin"),
            ("--cni-conflist", "00-culvert.conf"),
            ("--cni-conflist", "a/b.conflist"),
            ("--cni-conflist", ".conflist"),
        ] {
            let error = install(true, &[&format!("{flag}={value}")]).err();
            let error = error.unwrap_or_else(|| panic!("took {flag}={value}"));
            assert!(error.starts_with(flag) && error.contains(value), "{error}");
        }
    }
}

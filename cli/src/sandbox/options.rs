// SPDX-License-Identifier: Apache-2.0
//! What `up` asks the supervisor for, kept on disk for its successor.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{families::IpFamilies, layout::Layout};

/// What a sandbox is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    /// The directory of manifests.
    pub dir: PathBuf,
    /// How many nodes.
    pub nodes: u8,
    /// The address families of pods, services and nodes.
    #[serde(default)]
    pub ip_families: IpFamilies,
    /// Where Culvert's programs are.
    pub bin_dir: PathBuf,
    /// The log level of Culvert's processes.
    pub log: String,
    /// More arguments for control, agents and proxies.
    #[serde(default)]
    pub extra: Extra,
}

/// More arguments for Culvert's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extra {
    /// For control.
    pub control: Vec<String>,
    /// For every agent.
    pub agent: Vec<String>,
    /// For every proxy.
    pub proxy: Vec<String>,
}

// === impl Options ===

impl Options {
    /// What an earlier `up` asked for.
    pub fn load(layout: &Layout) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(layout.state())?)?)
    }

    /// Keeps what this `up` asks for.
    pub fn save(&self, layout: &Layout) -> io::Result<()> {
        let new = layout
            .root()
            .join(format!("state.{}.new", std::process::id()));
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, layout.state())
    }

    /// What can't change while the sandbox is up.
    pub fn fixed(&self) -> (&Path, IpFamilies, &str, &Extra) {
        (&self.bin_dir, self.ip_families, &self.log, &self.extra)
    }

    /// Why it does not become `wanted` while it is up.
    pub fn refusal(&self, wanted: &Self) -> String {
        let (has, asked) = (self.ip_families, wanted.ip_families);
        if has != asked {
            return format!(
                "got the address families {asked}, the sandbox is up with {has}: use `--ip-families \
                 {has}`, or `culvert sandbox down` first"
            );
        }
        "the directory of programs, the log level and additional arguments can't change while the \
         sandbox is up: use `culvert sandbox down` first"
            .to_owned()
    }

    /// More arguments for a kind of process.
    pub fn extra(&self, kind: &str) -> &[String] {
        match kind {
            "control" => &self.extra.control,
            "agent" => &self.extra.agent,
            _ => &self.extra.proxy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_families_that_the_sandbox_has() {
        let options = |families: &str| Options {
            dir: PathBuf::new(),
            nodes: 1,
            ip_families: families.parse().unwrap_or_else(|e| panic!("{e}")),
            bin_dir: PathBuf::new(),
            log: String::new(),
            extra: Extra::default(),
        };
        let (has, wanted) = (options("IPv6"), options("IPv4,IPv6"));
        assert_ne!(has.fixed(), wanted.fixed());
        assert!(has.refusal(&wanted).contains("`--ip-families IPv6`"));
        assert!(has.refusal(&has).contains("log level"));
    }
}

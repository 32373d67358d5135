// SPDX-License-Identifier: Apache-2.0
//! What `up` asks the supervisor for, kept on disk for its successor.

use std::{fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::layout::Layout;

/// What a sandbox is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Options {
    /// The directory of manifests.
    pub dir: PathBuf,
    /// How many nodes.
    pub nodes: u8,
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

    /// More arguments for a kind of process.
    pub fn extra(&self, kind: &str) -> &[String] {
        match kind {
            "control" => &self.extra.control,
            "agent" => &self.extra.agent,
            _ => &self.extra.proxy,
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What `culvert-cni` and the agent say to each other over a Unix stream socket: one JSON request,
//! one JSON answer, each on a line of its own, then the plugin closes.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::version::Versions;

/// The versions that this release speaks.
pub const VERSIONS: Versions = Versions {
    newest: 1,
    oldest: 1,
};

/// The versions of the CNI specification that the plugin speaks, the oldest first: those in which
/// plugins are chained. 0.3.1 is what flannel and Calico still write.
pub const CNI_VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The longest message, in bytes. A longer one is refused unread.
pub const MAX_MESSAGE: usize = 1 << 20;

/// What the plugin asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What the plugin speaks.
    pub versions: Versions,
    /// The command of the runtime.
    pub command: Command,
}

/// A CNI command, <https://www.cni.dev/docs/spec/#section-2-execution-protocol>.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Steer a pod, if it is opted in.
    Add(Attachment),
    /// Let go of a pod. What is already gone is let go of with success.
    Del(Attachment),
    /// Is the pod still steered as ADD left it?
    Check(Attachment),
    /// Let go of every attachment of this network that is not listed.
    Gc {
        /// The network's name; empty from a plugin that does not say it.
        #[serde(default)]
        network: String,
        /// The attachments that the runtime still knows: container id and interface.
        valid: Vec<(String, String)>,
    },
    /// Could a pod be added now?
    Status,
}

/// A container's interface in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name, the `name` of its configuration; empty from a plugin that does not say
    /// it.
    #[serde(default)]
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`; absent when the runtime no longer knows it (DEL).
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS` by key, `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and `K8S_POD_UID` among them.
    pub args: BTreeMap<String, String>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// The command was carried out.
    Done {
        /// Whether the pod is steered now (ADD, CHECK).
        steered: bool,
    },
    /// The command failed.
    Failed {
        /// A code of the CNI specification: 11 is "try again later", 50 "not available".
        code: u32,
        /// What went wrong, in a sentence.
        message: String,
        /// Whose fault it is and what to do.
        details: String,
    },
}

/// What the agent keeps on disk for the plugin to decide from while the agent is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptIn {
    /// The uids of this node's pods that the agent knows to be unmeshed.
    pub unmeshed_pods: Vec<String>,
}

/// Beside the [`OptIn`] file: the directory where the plugin leaves the [`Attachment`] of each pod
/// that it let pass while the agent was away, as `<container id>.<interface>.json`. The agent takes
/// them over after it has bound its socket; the plugin asks once more after it has left one.
pub const PASSED_DIR: &str = "passed";

/// The error codes of the CNI specification that the plugin uses.
pub mod code {
    /// Incompatible CNI version.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Unsupported field in the network configuration.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A necessary environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// I/O failure, such as reading the configuration from stdin.
    pub const IO_FAILURE: u32 = 5;
    /// The network configuration can't be decoded.
    pub const DECODING_FAILURE: u32 = 6;
    /// The network configuration is invalid.
    pub const INVALID_CONFIG: u32 = 7;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin is not available and can't service ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The first code of our own: steering failed.
    pub const STEERING_FAILED: u32 = 100;
    /// CHECK found the pod not steered as ADD left it.
    pub const NOT_AS_ADDED: u32 = 101;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_that_names_no_network_is_understood() {
        let gc = serde_json::from_str(r#"{"command":"gc","valid":[]}"#);
        let expected = Command::Gc {
            network: String::new(),
            valid: vec![],
        };
        assert_eq!(gc.ok(), Some(expected));
        let add = r#"{"command":"add","container_id":"c","ifname":"e","netns":null,"args":{}}"#;
        let Ok(Command::Add(attachment)) = serde_json::from_str(add) else {
            panic!("{add}")
        };
        assert_eq!(attachment.network, "");
    }
}

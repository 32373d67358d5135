// SPDX-License-Identifier: Apache-2.0
//! The interfaces of a sandbox that were added and not deleted yet.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// An interface in a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Interface {
    /// The network's name; empty where the plugin did not say it.
    pub network: String,
    /// The interface's name.
    pub ifname: String,
}

/// The interfaces of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Interfaces(BTreeSet<Interface>);

/// Releases before networks had names read and write `ifnames` only.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(default)]
    ifnames: BTreeSet<String>,
    #[serde(default)]
    interfaces: BTreeSet<Interface>,
}

// === impl Interface ===

impl Interface {
    /// Whether it may be the same: a nameless network may be any.
    fn may_be(&self, other: &Self) -> bool {
        let nameless = self.network.is_empty() || other.network.is_empty();
        self.ifname == other.ifname && (nameless || self.network == other.network)
    }
}

// === impl Interfaces ===

impl Interfaces {
    /// An interface is added. What its network is may be known only now.
    pub fn add(&mut self, interface: Interface) {
        self.delete(&interface);
        self.0.insert(interface);
    }

    /// An interface is deleted.
    pub fn delete(&mut self, interface: &Interface) {
        self.0.retain(|there| !there.may_be(interface));
    }

    /// Deletes the interfaces of a network that are not valid.
    pub fn collect(&mut self, network: &str, valid: &BTreeSet<String>) {
        let keep = |there: &Interface| there.network != network || valid.contains(&there.ifname);
        self.0.retain(keep);
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Written> for Interfaces {
    fn from(
        Written {
            ifnames,
            interfaces,
        }: Written,
    ) -> Self {
        let mut all = Self(interfaces);
        for ifname in ifnames {
            let network = String::new();
            let nameless = Interface { network, ifname };
            if !all.0.iter().any(|there| there.may_be(&nameless)) {
                all.0.insert(nameless);
            }
        }
        all
    }
}

impl From<Interfaces> for Written {
    fn from(Interfaces(interfaces): Interfaces) -> Self {
        let names = interfaces.iter().map(|interface| interface.ifname.clone());
        Self {
            ifnames: names.collect(),
            interfaces,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(network: &str, ifname: &str) -> Interface {
        Interface {
            network: network.into(),
            ifname: ifname.into(),
        }
    }

    fn both() -> Interfaces {
        let mut both = Interfaces::default();
        both.add(interface("one", "eth0"));
        both.add(interface("two", "net1"));
        both
    }

    #[test]
    fn a_network_is_collected_alone() {
        let mut all = both();
        all.collect("three", &BTreeSet::new());
        assert_eq!(all, both());
        all.collect("one", &BTreeSet::from(["net1".to_owned()]));
        assert_eq!(all.0, BTreeSet::from([interface("two", "net1")]));
        all.delete(&interface("", "net1"));
        assert!(all.is_empty());
    }

    #[test]
    fn a_release_apart_reads_them() {
        let text = serde_json::to_string(&both()).unwrap_or_else(|e| panic!("{e}"));
        assert!(text.contains(r#""ifnames":["eth0","net1"]"#), "{text}");
        assert_eq!(serde_json::from_str(&text).ok(), Some(both()));
        let old: Interfaces =
            serde_json::from_str(r#"{"ifnames":["eth0"]}"#).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(old.0, BTreeSet::from([interface("", "eth0")]));
    }
}

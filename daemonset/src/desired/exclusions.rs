// SPDX-License-Identifier: Apache-2.0
//! What a pod asks to be left alone, parsed from its annotations.

use std::{net::IpAddr, ops::RangeInclusive};

pub use culvert_api::lists::{BadItem, ports};
use culvert_api::lists::{items, number};
use culvert_ebpf_loader as loader;
use serde::{Deserialize, Serialize};

/// What a pod asks to be left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exclusions {
    /// Destination ports of outbound connections.
    pub outbound_ports: Vec<RangeInclusive<u16>>,
    /// Local ports of inbound connections.
    pub inbound_ports: Vec<RangeInclusive<u16>>,
    /// Destinations of outbound and sources of inbound connections.
    pub subnets: Vec<Subnet>,
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// An address in the block.
    pub addr: IpAddr,
    /// How many leading bits count.
    pub prefix_len: u8,
}

const SUBNETS: &str = "a subnet such as 10.0.0.0/8 or fd00::/8";

/// Parses `10.0.0.0/8,fd00::/8`.
pub fn subnets(list: &str) -> Result<Vec<Subnet>, BadItem> {
    items(list, SUBNETS, subnet)
}

fn subnet(item: &str) -> Option<Subnet> {
    let (addr, prefix_len) = item.split_once('/')?;
    let addr: IpAddr = addr.parse().ok()?;
    let prefix_len = number(prefix_len)?;
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    (prefix_len <= bits).then_some(Subnet { addr, prefix_len })
}

impl From<&Exclusions> for loader::Exclusions {
    fn from(exclusions: &Exclusions) -> Self {
        let subnet = |subnet: &Subnet| loader::Subnet {
            addr: subnet.addr,
            prefix_len: subnet.prefix_len,
        };
        Self {
            outbound_ports: exclusions.outbound_ports.clone(),
            inbound_ports: exclusions.inbound_ports.clone(),
            subnets: exclusions.subnets.iter().map(subnet).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_of_both_families() {
        let addr = |text: &str| text.parse().unwrap_or_else(|e| panic!("{e}"));
        let expected = vec![
            Subnet {
                addr: addr("10.0.0.0"),
                prefix_len: 8,
            },
            Subnet {
                addr: addr("fd00::"),
                prefix_len: 8,
            },
        ];
        assert_eq!(subnets("10.0.0.0/8,fd00::/8"), Ok(expected));
        for bad in [
            "10.0.0.0",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0/8",
            "10.0.0.0/",
            "a/8",
        ] {
            assert!(subnets(bad).is_err(), "{bad}");
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What a pod asks to be left alone, parsed from its annotations.

use std::{net::IpAddr, ops::RangeInclusive, str::FromStr};

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

/// An item of a list is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("got {item:?}, expected {expected}")]
pub struct BadItem {
    /// As written.
    pub item: String,
    /// In words.
    pub expected: &'static str,
}

const PORTS: &str = "a port from 1 to 65535 or a range of them such as 4567-4568";
const SUBNETS: &str = "a subnet such as 10.0.0.0/8 or fd00::/8";

/// Parses `25,4567-4568`. An empty list is one, too: it overrides the namespace's.
pub fn ports(list: &str) -> Result<Vec<RangeInclusive<u16>>, BadItem> {
    items(list, PORTS, range)
}

/// Parses `10.0.0.0/8,fd00::/8`.
pub fn subnets(list: &str) -> Result<Vec<Subnet>, BadItem> {
    items(list, SUBNETS, subnet)
}

fn items<T>(
    list: &str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, BadItem> {
    if list.trim().is_empty() {
        return Ok(Vec::new());
    }
    let bad = |item: &str| BadItem {
        item: item.to_owned(),
        expected,
    };
    let items = list.split(',').map(str::trim);
    items
        .map(|item| parse(item).ok_or_else(|| bad(item)))
        .collect()
}

fn range(item: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let (first, last) = (number(first)?, number(last)?);
    (1..=last).contains(&first).then_some(first..=last)
}

fn subnet(item: &str) -> Option<Subnet> {
    let (addr, prefix_len) = item.split_once('/')?;
    let addr: IpAddr = addr.parse().ok()?;
    let prefix_len = number(prefix_len)?;
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    (prefix_len <= bits).then_some(Subnet { addr, prefix_len })
}

/// Digits only: `parse` would take a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
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
    fn ports_and_ranges() {
        assert_eq!(ports("25, 4567-4568"), Ok(vec![25..=25, 4567..=4568]));
        assert_eq!(ports(""), Ok(vec![]));
        for bad in ["0", "x", "1,", "70000", "5-4", "-5", "+5", "1-2-3", "1 - 2"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

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

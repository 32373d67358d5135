// SPDX-License-Identifier: Apache-2.0
//! Exclusions as keys of LPM tries.

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, ops::RangeInclusive};

use aya::{
    Pod,
    maps::{
        MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use culvert_ebpf_abi::{
    Address, MAX_EXCLUSIONS,
    exclusions::{PORT_HEAD_BITS, Port, SUBNET_HEAD_BITS, Subnet as SubnetKey},
};

use crate::{Error, Subnet, objects::missing_is_ok};

/// A set of keys with their prefix lengths, in bits.
pub(crate) type Keys<K> = BTreeSet<(u32, K)>;

/// A trie of exclusions: that a key is there says it all.
pub(crate) type Trie<K> = LpmTrie<MapData, K, u32>;

/// The keys of some subnets.
pub(crate) fn subnets(scope: u64, subnets: &[Subnet]) -> Result<Keys<SubnetKey>, Error> {
    let keys = subnets
        .iter()
        .map(|subnet| subnet_key(scope, *subnet))
        .collect::<Result<Keys<_>, _>>()?;
    limit(keys, "subnets")
}

fn subnet_key(scope: u64, subnet: Subnet) -> Result<(u32, SubnetKey), Error> {
    let Subnet { addr, prefix_len } = subnet;
    let max = if addr.is_ipv4() { 32 } else { 128 };
    if prefix_len > max {
        return Err(Error::Exclusion {
            what: format!("{addr}/{prefix_len}: the prefix length is more than {max}"),
        });
    }
    let (addr, bits) = match addr {
        IpAddr::V4(addr) => (addr.to_ipv6_mapped(), u32::from(prefix_len) + 96),
        IpAddr::V6(addr) => (addr, u32::from(prefix_len)),
    };
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    let masked = Address::from(IpAddr::V6((addr.to_bits() & mask).into()));
    Ok((SUBNET_HEAD_BITS + bits, SubnetKey::of(scope, &masked)))
}

/// The keys of some ranges of ports: each range is as many prefixes as it takes.
pub(crate) fn ports(scope: u64, ranges: &[RangeInclusive<u16>]) -> Result<Keys<Port>, Error> {
    let mut keys = Keys::new();
    for range in ranges {
        if range.is_empty() {
            return Err(Error::Exclusion {
                what: format!(
                    "ports {}-{}: the first is after the last",
                    range.start(),
                    range.end()
                ),
            });
        }
        let prefixes = port_prefixes(range.clone());
        keys.extend(prefixes.map(|(bits, port)| (PORT_HEAD_BITS + bits, Port::of(scope, port))));
    }
    limit(keys, "ranges of ports")
}

/// Cuts a range into the fewest prefixes, (length in bits, first port).
fn port_prefixes(range: RangeInclusive<u16>) -> impl Iterator<Item = (u32, u16)> {
    let end = u32::from(*range.end()) + 1;
    let mut next = u32::from(*range.start());
    std::iter::from_fn(move || {
        let left = (end - next).checked_ilog2()?;
        let free_bits = next.trailing_zeros().min(left).min(16);
        let first = u16::try_from(next).ok()?;
        next += 1 << free_bits;
        Some((16 - free_bits, first))
    })
}

fn limit<K>(keys: Keys<K>, what: &str) -> Result<Keys<K>, Error> {
    if keys.len() <= MAX_EXCLUSIONS {
        return Ok(keys);
    }
    Err(Error::Exclusion {
        what: format!(
            "so many {what}: they take {} prefixes, more than the {MAX_EXCLUSIONS} that one pod may have",
            keys.len()
        ),
    })
}

/// Makes `new` of `old` in a trie, adding first so that nothing that stays is ever missing.
pub(crate) fn replace<K: Pod + Ord>(
    trie: &mut Trie<K>,
    old: &Keys<K>,
    new: &Keys<K>,
) -> Result<(), Error> {
    for (bits, key) in new.difference(old) {
        trie.insert(&Key::new(*bits, *key), 1, 0)
            .map_err(Error::kernel("add an exclusion"))?;
    }
    for (bits, key) in old.difference(new) {
        missing_is_ok(trie.remove(&Key::new(*bits, *key)))
            .map_err(Error::kernel("remove an exclusion"))?;
    }
    Ok(())
}

/// What is in a trie.
pub(crate) fn read<K: Pod + Ord>(trie: &Trie<K>) -> Result<Keys<K>, Error> {
    trie.keys()
        .map(|key| key.map(|key| (key.prefix_len(), key.data())))
        .collect::<Result<_, _>>()
        .map_err(Error::kernel("read the exclusions of an earlier agent"))
}

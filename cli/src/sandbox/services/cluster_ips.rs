// SPDX-License-Identifier: Apache-2.0
//! The addresses of services: those that are asked for, and for the others a free one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::{Key, families::Stack};
use crate::sandbox::{
    families::{IpFamilies, IpFamily},
    layout::fnv1a,
};

/// The IPv4 network of service addresses, a /16.
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);
/// The IPv6 network of service addresses, a /112.
const NETWORK6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0);

/// How many addresses each has to give: neither the first nor the last.
const SIZE: u64 = (1 << 16) - 2;

/// What is wrong with a service.
type Problem = (Key, String);

/// The addresses that services without one were given. A service keeps its address while it lives,
/// and gets the same again in the next sandbox unless another one took it.
#[derive(Clone, Debug, Default)]
pub struct ClusterIps {
    families: IpFamilies,
    given: BTreeMap<(Key, IpFamily), IpAddr>,
}

// === impl ClusterIps ===

impl ClusterIps {
    /// None given yet, in a sandbox of these families.
    pub fn new(families: IpFamilies) -> Self {
        Self {
            families,
            given: BTreeMap::new(),
        }
    }

    /// Completes the services with families and addresses, and says what is wrong with some.
    pub fn assign(&mut self, services: &mut BTreeMap<Key, Service>) -> Vec<Problem> {
        let (stacks, mut problems) = stacks(services, self.families);
        let (mut taken, twice) = explicit(&stacks);
        problems.extend(twice);
        self.given.retain(|(key, family), ip| {
            let wanted = stacks.get(key).is_some_and(|stack| stack.gives(*family));
            wanted && taken.insert(*ip)
        });
        for (key, stack) in stacks {
            let ips = self.addresses(&key, &stack, &mut taken);
            if let Some(service) = services.get_mut(&key) {
                set(service.spec.get_or_insert_default(), &stack, &ips);
            }
        }
        problems
    }

    fn addresses(&mut self, key: &Key, stack: &Stack, taken: &mut BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let families = stack.families.iter().filter(|family| stack.gives(**family));
        let given = families.map(|family| {
            let given = self.given.entry((key.clone(), *family));
            let ip = *given.or_insert_with(|| free(key, *family, taken));
            taken.insert(ip);
            ip
        });
        let given: Vec<_> = given.collect();
        stack.explicit.iter().copied().chain(given).collect()
    }
}

// === impl Stack ===

impl Stack {
    /// Whether it gets an address of this family.
    fn gives(&self, family: IpFamily) -> bool {
        let has = |ip: &IpAddr| IpFamily::of(*ip) == family;
        !self.headless && self.families.contains(&family) && !self.explicit.iter().any(has)
    }
}

fn stacks(
    services: &BTreeMap<Key, Service>,
    families: IpFamilies,
) -> (BTreeMap<Key, Stack>, Vec<Problem>) {
    let (mut stacks, mut problems) = (BTreeMap::new(), Vec::new());
    let none = ServiceSpec::default();
    for (key, service) in services {
        match Stack::of(service.spec.as_ref().unwrap_or(&none), families) {
            Ok(stack) => drop(stacks.insert(key.clone(), stack)),
            Err(reason) => problems.push((key.clone(), reason)),
        }
    }
    (stacks, problems)
}

/// The addresses that users gave, and those of them that are given twice or are elsewhere.
fn explicit(stacks: &BTreeMap<Key, Stack>) -> (BTreeSet<IpAddr>, Vec<Problem>) {
    let (mut taken, mut problems) = (BTreeSet::new(), Vec::new());
    for (key, stack) in stacks {
        for ip in &stack.explicit {
            if !in_network(*ip) || !taken.insert(*ip) {
                let reason = format!(
                    "got clusterIP \"{ip}\", expected None or an address of 10.96.0.0/16 or \
                     fd00:96::/112 that no other Service has"
                );
                problems.push((key.clone(), reason));
            }
        }
    }
    (taken, problems)
}

fn in_network(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == NETWORK.octets()[..2],
        IpAddr::V6(ip) => ip.segments()[..7] == NETWORK6.segments()[..7],
    }
}

fn nth(family: IpFamily, nth: u16) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::from(u32::from(NETWORK) | u32::from(nth)).into(),
        IpFamily::V6 => Ipv6Addr::from(u128::from(NETWORK6) | u128::from(nth)).into(),
    }
}

fn free(key: &Key, family: IpFamily, taken: &BTreeSet<IpAddr>) -> IpAddr {
    let start = fnv1a(format!("{}/{}", key.0, key.1).as_bytes());
    let address = |step| {
        let number = start.wrapping_add(step) % SIZE + 1;
        nth(family, u16::try_from(number).unwrap_or(0))
    };
    let free = (0..SIZE).map(address).find(|ip| !taken.contains(ip));
    free.unwrap_or_else(|| nth(family, 0))
}

fn set(spec: &mut ServiceSpec, stack: &Stack, ips: &[IpAddr]) {
    let names = stack.families.iter().map(|family| family.as_str().into());
    spec.ip_families = Some(names.collect());
    spec.ip_family_policy = Some(stack.policy.to_owned());
    let texts: Vec<String> = match stack.headless {
        true => vec!["None".to_owned()],
        false => ips.iter().map(ToString::to_string).collect(),
    };
    spec.cluster_ip = texts.first().cloned();
    spec.cluster_ips = Some(texts);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> (Key, Service) {
        let service = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        let service = serde_json::from_value(service).unwrap_or_else(|e| panic!("{e}"));
        (("shop".into(), name.into()), service)
    }

    fn ips(services: &BTreeMap<Key, Service>, name: &str) -> Vec<String> {
        let spec = services[&("shop".to_owned(), name.to_owned())].spec.clone();
        let spec = spec.unwrap_or_default();
        let all = spec.cluster_ips.unwrap_or_default();
        assert_eq!(spec.cluster_ip.as_ref(), all.first());
        all
    }

    fn dual() -> ClusterIps {
        ClusterIps::new("IPv4,IPv6".parse().unwrap_or_else(|e| panic!("{e}")))
    }

    #[test]
    fn addresses_are_stable_distinct_and_give_way_to_explicit_ones() {
        let mut given = dual();
        let mut services = BTreeMap::from([service("a", json!({})), service("b", json!({}))]);
        assert!(given.assign(&mut services).is_empty());
        let (a, b) = (ips(&services, "a"), ips(&services, "b"));
        assert_ne!(a, b);

        let fresh = BTreeMap::from([service("a", json!({}))]);
        let mut again = fresh.clone();
        dual().assign(&mut again);
        assert_eq!(ips(&again, "a"), a);

        let thief = service("c", json!({"clusterIP": a[0]}));
        let mut robbed: BTreeMap<_, _> = fresh.into_iter().chain([thief]).collect();
        assert!(given.assign(&mut robbed).is_empty());
        assert_ne!(ips(&robbed, "a"), a);
        assert_eq!(ips(&robbed, "c"), a);
    }

    #[test]
    fn wrong_addresses_are_named() {
        let mut services = BTreeMap::from([
            service("a", json!({"clusterIP": "10.96.0.9"})),
            service("b", json!({"clusterIP": "10.96.0.9"})),
            service("c", json!({"clusterIP": "192.0.2.1"})),
            service("d", json!({"clusterIP": "None"})),
            service("e", json!({"clusterIP": "fd00:97::1"})),
            service("f", json!({"clusterIP": "x"})),
        ]);
        let mut names: Vec<_> = dual()
            .assign(&mut services)
            .into_iter()
            .map(|((_, name), _)| name)
            .collect();
        names.sort();
        assert_eq!(names, ["b", "c", "e", "f"]);
        assert_eq!(ips(&services, "d"), ["None"]);
    }

    #[test]
    fn a_dual_service_has_an_address_of_each_family_and_keeps_both() {
        let policy = json!({"ipFamilyPolicy": "PreferDualStack"});
        let mut given = dual();
        let mut services = BTreeMap::from([
            service("a", policy.clone()),
            service("b", json!({"clusterIPs": ["fd00:96::9", "10.96.0.9"]})),
        ]);
        assert!(given.assign(&mut services).is_empty());
        let a = ips(&services, "a");
        assert!(
            a[0].starts_with("10.96.") && a[1].starts_with("fd00:96::"),
            "{a:?}"
        );
        assert_eq!(ips(&services, "b"), ["fd00:96::9", "10.96.0.9"]);
        let spec = services.values().next().and_then(|one| one.spec.clone());
        assert_eq!(
            spec.and_then(|spec| spec.ip_families),
            Some(vec!["IPv4".to_owned(), "IPv6".to_owned()])
        );
        let mut again = BTreeMap::from([service("a", policy)]);
        given.assign(&mut again);
        assert_eq!(ips(&again, "a"), a);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Which address families a service has, and in which order, as Kubernetes defaults and checks it
//! (<https://kubernetes.io/docs/concepts/services-networking/dual-stack/#services>).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::ServiceSpec;

use crate::sandbox::families::{IpFamilies, IpFamily};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// What a service is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Its families, in order.
    pub families: Vec<IpFamily>,
    /// Its `ipFamilyPolicy`.
    pub policy: &'static str,
    /// The addresses that it asks for, of the first families.
    pub explicit: Vec<IpAddr>,
    /// It wants none.
    pub headless: bool,
}

/// The addresses that a service asks for, as they are written.
struct Asked<'a> {
    texts: Vec<&'a str>,
    headless: bool,
}

// === impl Stack ===

impl Stack {
    /// What a service of a cluster of these families is to have, or what is wrong with it.
    pub fn of(spec: &ServiceSpec, cluster: IpFamilies) -> Result<Self, String> {
        let asked = Asked::of(spec)?;
        let explicit = asked.addresses()?;
        let families = named(spec, &explicit)?;
        if let Some(family) = families.iter().find(|family| !cluster.contains(**family)) {
            return Err(format!(
                "got the family {family}, this sandbox has {cluster}: see --ip-families"
            ));
        }
        let policy = match spec.ip_family_policy.as_deref() {
            None => default_policy(spec, &asked, &families, cluster),
            Some(policy) => known_policy(policy)?,
        };
        Ok(Self {
            families: complete(families, policy, cluster)?,
            policy,
            explicit,
            headless: asked.headless,
        })
    }
}

// === impl Asked ===

impl<'a> Asked<'a> {
    fn of(spec: &'a ServiceSpec) -> Result<Self, String> {
        let one = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
        let all: Vec<_> = spec
            .cluster_ips
            .iter()
            .flatten()
            .map(String::as_str)
            .collect();
        if let (Some(one), Some(first)) = (one, all.first())
            && one != *first
        {
            return Err(format!(
                "got clusterIP {one:?} and clusterIPs {all:?}, expected clusterIP first in clusterIPs"
            ));
        }
        let texts = if all.is_empty() {
            one.into_iter().collect()
        } else {
            all
        };
        let headless = texts == ["None"];
        Ok(Self { texts, headless })
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, String> {
        if self.headless {
            return Ok(Vec::new());
        }
        let parse = |text: &&str| {
            let ip = text.parse();
            ip.map_err(|_| format!("got clusterIP {text:?}, expected None or an address"))
        };
        self.texts.iter().map(parse).collect()
    }
}

/// The families that are named or follow from addresses.
fn named(spec: &ServiceSpec, explicit: &[IpAddr]) -> Result<Vec<IpFamily>, String> {
    let names = spec.ip_families.iter().flatten();
    let parse = |name: &String| {
        let family = name.parse();
        family.map_err(|_| format!("got {name:?} in ipFamilies, expected IPv4 or IPv6"))
    };
    let mut families: Vec<IpFamily> = names.map(parse).collect::<Result<_, _>>()?;
    for (nth, ip) in explicit.iter().enumerate() {
        let family = IpFamily::of(*ip);
        match families.get(nth) {
            Some(named) if *named != family => {
                return Err(format!("got the clusterIP {ip} for the family {named}"));
            }
            Some(_) => {}
            None => families.push(family),
        }
    }
    let twice = families.len() > 2 || families.len() == 2 && families[0] == families[1];
    match twice {
        true => Err("got a family twice, expected one or two different ones".to_owned()),
        false => Ok(families),
    }
}

/// A headless service without a selector may have endpoints of any family.
fn default_policy(
    spec: &ServiceSpec,
    asked: &Asked<'_>,
    families: &[IpFamily],
    cluster: IpFamilies,
) -> &'static str {
    let selects = spec.selector.as_ref().is_some_and(|all| !all.is_empty());
    let any = asked.headless && !selects && cluster.is_dual();
    match any || families.len() == 2 {
        true => REQUIRE,
        false => SINGLE,
    }
}

fn known_policy(policy: &str) -> Result<&'static str, String> {
    let known = [SINGLE, PREFER, REQUIRE];
    known.into_iter().find(|one| *one == policy).ok_or_else(|| {
        format!(
            "got ipFamilyPolicy {policy:?}, expected {}",
            known.join(", ")
        )
    })
}

/// The cluster's first family where none is named, and the other one where the policy wants it.
fn complete(
    mut families: Vec<IpFamily>,
    policy: &str,
    cluster: IpFamilies,
) -> Result<Vec<IpFamily>, String> {
    if policy == SINGLE && families.len() > 1 {
        return Err("got two families with ipFamilyPolicy SingleStack, expected one".to_owned());
    }
    if policy == REQUIRE && !cluster.is_dual() {
        return Err(format!(
            "got ipFamilyPolicy RequireDualStack, this sandbox has {cluster}: see --ip-families"
        ));
    }
    if families.is_empty() {
        families.push(cluster.primary());
    }
    if policy != SINGLE {
        let other = families[0].other();
        families.truncate(1);
        families.extend(cluster.contains(other).then_some(other));
    }
    Ok(families)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn stack(spec: Value, cluster: &str) -> Result<(String, &'static str), String> {
        let spec = serde_json::from_value(spec).unwrap_or_else(|e| panic!("{e}"));
        let cluster = cluster.parse().unwrap_or_else(|e| panic!("{e}"));
        let stack = Stack::of(&spec, cluster)?;
        let families: Vec<_> = stack.families.iter().map(|one| one.as_str()).collect();
        Ok((families.join(","), stack.policy))
    }

    #[test]
    fn services_get_the_families_that_kubernetes_would_give_them() {
        let selector = json!({"app": "a"});
        for (spec, cluster, families, policy) in [
            (json!({}), "IPv4,IPv6", "IPv4", SINGLE),
            (json!({}), "IPv6,IPv4", "IPv6", SINGLE),
            (json!({"ipFamilies": ["IPv6"]}), "IPv4,IPv6", "IPv6", SINGLE),
            (
                json!({"ipFamilies": ["IPv6", "IPv4"]}),
                "IPv4,IPv6",
                "IPv6,IPv4",
                REQUIRE,
            ),
            (
                json!({"ipFamilyPolicy": PREFER}),
                "IPv4,IPv6",
                "IPv4,IPv6",
                PREFER,
            ),
            (json!({"ipFamilyPolicy": PREFER}), "IPv6", "IPv6", PREFER),
            (
                json!({"ipFamilyPolicy": PREFER, "ipFamilies": ["IPv6"]}),
                "IPv4,IPv6",
                "IPv6,IPv4",
                PREFER,
            ),
            (
                json!({"ipFamilyPolicy": REQUIRE}),
                "IPv6,IPv4",
                "IPv6,IPv4",
                REQUIRE,
            ),
            (
                json!({"clusterIP": "fd00:96::9"}),
                "IPv4,IPv6",
                "IPv6",
                SINGLE,
            ),
            (
                json!({"clusterIPs": ["10.96.0.9", "fd00:96::9"]}),
                "IPv4,IPv6",
                "IPv4,IPv6",
                REQUIRE,
            ),
            (
                json!({"clusterIP": "None"}),
                "IPv4,IPv6",
                "IPv4,IPv6",
                REQUIRE,
            ),
            (json!({"clusterIP": "None"}), "IPv6", "IPv6", SINGLE),
            (
                json!({"clusterIP": "None", "selector": selector}),
                "IPv4,IPv6",
                "IPv4",
                SINGLE,
            ),
        ] {
            let got = stack(spec.clone(), cluster);
            assert_eq!(
                got,
                Ok((families.to_owned(), policy)),
                "{spec} in {cluster}"
            );
        }
    }

    #[test]
    fn what_contradicts_itself_or_the_cluster_is_refused() {
        for (spec, cluster) in [
            (json!({"ipFamilies": ["IPv6"]}), "IPv4"),
            (json!({"ipFamilyPolicy": REQUIRE}), "IPv4"),
            (json!({"ipFamilyPolicy": "Both"}), "IPv4,IPv6"),
            (json!({"ipFamilies": ["IPv5"]}), "IPv4,IPv6"),
            (json!({"ipFamilies": ["IPv4", "IPv4"]}), "IPv4,IPv6"),
            (
                json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": SINGLE}),
                "IPv4,IPv6",
            ),
            (
                json!({"clusterIP": "fd00:96::9", "ipFamilies": ["IPv4"]}),
                "IPv4,IPv6",
            ),
            (
                json!({"clusterIPs": ["10.96.0.9", "10.96.0.8"]}),
                "IPv4,IPv6",
            ),
            (
                json!({"clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.9"]}),
                "IPv4,IPv6",
            ),
            (json!({"clusterIPs": ["None", "10.96.0.9"]}), "IPv4,IPv6"),
        ] {
            assert!(stack(spec.clone(), cluster).is_err(), "{spec} in {cluster}");
        }
    }
}

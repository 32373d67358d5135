// SPDX-License-Identifier: Apache-2.0
//! The annotations by which pods and namespaces are opted in and configured. Linkerd's names mean
//! the same as ours; the pod's beat the namespace's, and `culvert.io` beats `linkerd.io`.

mod known;

use std::collections::BTreeMap;

pub use self::known::{Standing, standing};

/// `enabled` opts in, `disabled` opts out. `ingress` is `enabled`: a node proxy goes by where a
/// connection goes, never by `l5d-dst-override`.
pub const INJECT: [&str; 2] = ["culvert.io/inject", "linkerd.io/inject"];
/// A name that [`crate::policy::InboundPolicy::named`] knows.
pub const DEFAULT_INBOUND_POLICY: [&str; 2] = [
    "culvert.io/default-inbound-policy",
    "config.linkerd.io/default-inbound-policy",
];
/// Inbound ports that bypass the proxy: numbers and ranges `a-b`, separated by commas. None by
/// default, where Linkerd has 4567 and 4568 (Galera): a protocol that speaks late does not stall here.
pub const SKIP_INBOUND_PORTS: [&str; 2] = [
    "culvert.io/skip-inbound-ports",
    "config.linkerd.io/skip-inbound-ports",
];
/// Outbound ports that bypass the proxy.
pub const SKIP_OUTBOUND_PORTS: [&str; 2] = [
    "culvert.io/skip-outbound-ports",
    "config.linkerd.io/skip-outbound-ports",
];
/// CIDRs that bypass the proxy, outbound as destinations and inbound as sources.
pub const SKIP_SUBNETS: [&str; 2] = ["culvert.io/skip-subnets", "config.linkerd.io/skip-subnets"];

/// Ports whose protocols are not looked at, of a pod or a service: as above, and names of its ports.
/// They take the place of [`crate::protocol::OPAQUE_PORTS`].
pub const OPAQUE_PORTS: [&str; 2] = ["culvert.io/opaque-ports", "config.linkerd.io/opaque-ports"];
/// `apache` or `json`: how a pod's requests are logged. Empty: not at all.
pub const ACCESS_LOG: [&str; 2] = ["culvert.io/access-log", "config.linkerd.io/access-log"];
/// `Auto`: of a service's endpoints, those of the client's zone are used. Kubernetes' own, by both
/// of its names.
pub const TOPOLOGY_MODE: [&str; 2] = [
    "service.kubernetes.io/topology-mode",
    "service.kubernetes.io/topology-aware-hints",
];

/// The label of a node that names its zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The annotations of a pod or of a namespace.
pub type Annotations = BTreeMap<String, String>;

/// The value that holds for a pod: its own, else its namespace's.
pub fn effective<'a>(
    names: [&str; 2],
    pod: &'a Annotations,
    namespace: &'a Annotations,
) -> Option<&'a str> {
    own(names, pod).or_else(|| own(names, namespace))
}

/// The value that an object has itself.
pub fn own<'a>(names: [&str; 2], of: &'a Annotations) -> Option<&'a str> {
    let value = names.iter().find_map(|name| of.get(*name));
    value.map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Annotations {
        Annotations::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn the_pod_beats_the_namespace() {
        let pod = of("linkerd.io/inject", "disabled");
        let namespace = of("culvert.io/inject", "enabled");
        assert_eq!(effective(INJECT, &pod, &namespace), Some("disabled"));
        assert_eq!(
            effective(INJECT, &of("a", "b"), &namespace),
            Some("enabled")
        );
        assert_eq!(effective(INJECT, &of("a", "b"), &of("a", "b")), None);
    }
}

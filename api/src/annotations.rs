// SPDX-License-Identifier: Apache-2.0
//! The annotations by which pods and namespaces are opted in and configured. Linkerd's names mean
//! the same as ours; the pod's beat the namespace's, and `culvert.io` beats `linkerd.io`.

use std::collections::BTreeMap;

/// `enabled` opts in, `disabled` opts out.
pub const INJECT: [&str; 2] = ["culvert.io/inject", "linkerd.io/inject"];
/// `all-unauthenticated` (permissive) or `all-authenticated` (strict).
pub const DEFAULT_INBOUND_POLICY: [&str; 2] = [
    "culvert.io/default-inbound-policy",
    "config.linkerd.io/default-inbound-policy",
];
/// Inbound ports that bypass the proxy: numbers and ranges `a-b`, separated by commas.
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

/// The annotations of a pod or of a namespace.
pub type Annotations = BTreeMap<String, String>;

/// The value that holds for a pod: its own, else its namespace's.
pub fn effective<'a>(
    names: [&str; 2],
    pod: &'a Annotations,
    namespace: &'a Annotations,
) -> Option<&'a str> {
    let value = |from: &'a Annotations| names.iter().find_map(|name| from.get(*name));
    value(pod).or_else(|| value(namespace)).map(String::as_str)
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

// SPDX-License-Identifier: Apache-2.0
//! Every annotation of Linkerd's, and what Culvert makes of it.

use super::{
    ACCESS_LOG, DEFAULT_INBOUND_POLICY, INJECT, OPAQUE_PORTS, SKIP_INBOUND_PORTS,
    SKIP_OUTBOUND_PORTS, SKIP_SUBNETS,
};
use crate::kubernetes::NODE_STATUS_ANNOTATION;

/// What Culvert makes of an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is followed.
    Followed,
    /// It configures a sidecar, or what else a mesh without sidecars does not have.
    Meaningless,
    /// It would make sense, and Culvert can't do it.
    Unsupported,
    /// It has a prefix of Culvert's or Linkerd's, and nobody knows it.
    Unknown,
}

/// What is followed, on pods and namespaces.
const FOLLOWED: [[&str; 2]; 7] = [
    INJECT,
    DEFAULT_INBOUND_POLICY,
    SKIP_INBOUND_PORTS,
    SKIP_OUTBOUND_PORTS,
    SKIP_SUBNETS,
    OPAQUE_PORTS,
    ACCESS_LOG,
];

/// Whose annotations are told when they are not followed.
const PREFIXES: [&str; 5] = [
    "culvert.io/",
    "linkerd.io/",
    "config.linkerd.io/",
    "config.alpha.linkerd.io/",
    "config.beta.linkerd.io/",
];

/// Written by a mesh, not by people.
const WRITTEN: [&str; 4] = [
    NODE_STATUS_ANNOTATION,
    "linkerd.io/created-by",
    "linkerd.io/proxy-version",
    "linkerd.io/trust-root-sha256",
];

/// Below Linkerd's `config` prefixes: a sidecar's image, resources, ports, user, start and stop,
/// and what Linkerd itself has given up
/// (<https://linkerd.io/2-edge/reference/proxy-configuration/>).
const MEANINGLESS: [&str; 40] = [
    "admin-port",
    "close-wait-timeout",
    "control-port",
    "debug-image",
    "debug-image-pull-policy",
    "debug-image-version",
    "disable-identity",
    "disable-tap",
    "enable-debug-sidecar",
    "image-pull-policy",
    "inbound-port",
    "init-image",
    "init-image-version",
    "outbound-port",
    "pod-inbound-ports",
    "proxy-additional-env",
    "proxy-admin-shutdown",
    "proxy-await",
    "proxy-cpu-limit",
    "proxy-cpu-ratio-limit",
    "proxy-cpu-request",
    "proxy-disable-inbound-protocol-detect-timeout",
    "proxy-disable-outbound-protocol-detect-timeout",
    "proxy-enable-native-sidecar",
    "proxy-ephemeral-storage-limit",
    "proxy-ephemeral-storage-request",
    "proxy-gid",
    "proxy-image",
    "proxy-inbound-discovery-cache-unused-timeout",
    "proxy-log-format",
    "proxy-log-level",
    "proxy-memory-limit",
    "proxy-memory-request",
    "proxy-outbound-discovery-cache-unused-timeout",
    "proxy-uid",
    "proxy-version",
    "proxy-wait-before-exit-seconds",
    "shutdown-grace-period",
    "trace-collector",
    "trace-collector-service-account",
];

/// Below Linkerd's `config` prefixes.
const UNSUPPORTED: [&str; 7] = [
    "enable-external-profiles",
    "enable-gateway",
    "proxy-inbound-connect-timeout",
    "proxy-log-http-headers",
    "proxy-metrics-hostname-labels",
    "proxy-outbound-connect-timeout",
    "proxy-require-identity-inbound-ports",
];

/// What Culvert makes of an annotation of a pod or a namespace; none if it is somebody else's.
pub fn standing(annotation: &str) -> Option<Standing> {
    let prefix = PREFIXES.iter().find(|p| annotation.starts_with(**p))?;
    let name = &annotation[prefix.len()..];
    let of_linkerd = prefix.starts_with("config.");
    let followed = FOLLOWED.iter().flatten().any(|known| *known == annotation);
    Some(match () {
        () if followed || WRITTEN.contains(&annotation) => Standing::Followed,
        () if of_linkerd && MEANINGLESS.contains(&name) => Standing::Meaningless,
        () if of_linkerd && UNSUPPORTED.contains(&name) => Standing::Unsupported,
        () => Standing::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_or_linkerds_is_judged_and_nothing_else() {
        for (annotation, expected) in [
            ("linkerd.io/inject", Some(Standing::Followed)),
            ("culvert.io/access-log", Some(Standing::Followed)),
            ("linkerd.io/created-by", Some(Standing::Followed)),
            (
                "config.linkerd.io/proxy-cpu-request",
                Some(Standing::Meaningless),
            ),
            (
                "config.alpha.linkerd.io/proxy-wait-before-exit-seconds",
                Some(Standing::Meaningless),
            ),
            (
                "config.linkerd.io/proxy-require-identity-inbound-ports",
                Some(Standing::Unsupported),
            ),
            ("culvert.io/proxy-cpu-request", Some(Standing::Unknown)),
            ("config.linkerd.io/opaque-port", Some(Standing::Unknown)),
            ("culvert.io/injected", Some(Standing::Unknown)),
            ("prometheus.io/scrape", None),
            ("viz.linkerd.io/disable-tap", None),
        ] {
            assert_eq!(standing(annotation), expected, "{annotation}");
        }
    }

    #[test]
    fn the_lists_are_sorted_and_apart() {
        assert!(MEANINGLESS.is_sorted() && UNSUPPORTED.is_sorted());
        assert!(!UNSUPPORTED.iter().any(|name| MEANINGLESS.contains(name)));
    }
}

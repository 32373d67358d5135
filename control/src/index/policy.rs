// SPDX-License-Identifier: Apache-2.0
//! The inbound policy that the annotations of a pod and of its namespace ask for.

use std::collections::BTreeMap;

use culvert_api::{
    annotations::{ACCESS_LOG, Annotations, DEFAULT_INBOUND_POLICY, effective},
    policy::{AccessLogFormat, InboundPolicy},
};

static NONE: Annotations = BTreeMap::new();

/// The policy, or the value that this release does not know, under which the policy is strict.
pub(super) fn of<'a>(
    pod: Option<&'a Annotations>,
    namespace: Option<&'a Annotations>,
) -> Result<InboundPolicy, &'a str> {
    let (pod, namespace) = (pod.unwrap_or(&NONE), namespace.unwrap_or(&NONE));
    match effective(DEFAULT_INBOUND_POLICY, pod, namespace) {
        None | Some("all-unauthenticated") => Ok(InboundPolicy::permissive()),
        Some("all-authenticated") => Ok(InboundPolicy::strict()),
        Some(other) => Err(other),
    }
}

/// How the pod's requests are logged, or the value that this release does not know.
pub(super) fn access_log<'a>(
    pod: Option<&'a Annotations>,
    namespace: Option<&'a Annotations>,
) -> Result<Option<AccessLogFormat>, &'a str> {
    let (pod, namespace) = (pod.unwrap_or(&NONE), namespace.unwrap_or(&NONE));
    match effective(ACCESS_LOG, pod, namespace) {
        None | Some("") => Ok(None),
        Some("apache") => Ok(Some(AccessLogFormat::Apache)),
        Some("json") => Ok(Some(AccessLogFormat::Json)),
        Some(other) => Err(other),
    }
}

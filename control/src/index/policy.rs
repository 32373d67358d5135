// SPDX-License-Identifier: Apache-2.0
//! The inbound policy that the annotations of a pod and of its namespace ask for.

use std::collections::BTreeMap;

use culvert_api::{
    annotations::{ACCESS_LOG, Annotations, DEFAULT_INBOUND_POLICY, INJECT, effective},
    policy::{AccessLogFormat, InboundPolicy},
};

static NONE: Annotations = BTreeMap::new();

/// Whether the pod is asked to be meshed, in the words that the agent knows.
pub(super) fn opts_in(pod: Option<&Annotations>, namespace: Option<&Annotations>) -> bool {
    let inject = effective(INJECT, pod.unwrap_or(&NONE), namespace.unwrap_or(&NONE));
    matches!(inject, Some("enabled" | "ingress"))
}

/// The policy, or the value that this release does not know, under which the policy is strict.
pub(super) fn of<'a>(
    pod: Option<&'a Annotations>,
    namespace: Option<&'a Annotations>,
) -> Result<InboundPolicy, &'a str> {
    let (pod, namespace) = (pod.unwrap_or(&NONE), namespace.unwrap_or(&NONE));
    match effective(DEFAULT_INBOUND_POLICY, pod, namespace) {
        None => Ok(InboundPolicy::permissive()),
        Some(name) => InboundPolicy::named(name).ok_or(name),
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

// SPDX-License-Identifier: Apache-2.0
//! The inbound policy that the annotations of a pod and of its namespace ask for.

use std::collections::BTreeMap;

use culvert_api::{
    annotations::{Annotations, DEFAULT_INBOUND_POLICY, effective},
    policy::InboundPolicy,
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

// SPDX-License-Identifier: Apache-2.0
//! A pod as the mesh sees it.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

/// The uid of a pod, as the API server gave it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(pub String);

/// The cookie of a network namespace: unique until the machine reboots, where inodes are reused
/// (`SO_NETNS_COOKIE`, Linux 5.14,
/// <https://git.kernel.org/torvalds/c/e8b9eab99232>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetnsCookie(pub u64);

/// One enrolment: a pod in one network namespace. Two sandboxes of one pod differ in the cookie.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadKey {
    /// The pod.
    pub uid: PodUid,
    /// Its network namespace.
    pub cookie: NetnsCookie,
}

/// What metrics and logs call a pod, and what its identity is made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Workload {
    /// The pod's uid.
    pub uid: PodUid,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The name of the pod's ServiceAccount.
    pub service_account: String,
    /// The kind of what owns the pod, in lower case (`deployment`, `statefulset`, `pod` …).
    pub owner_kind: String,
    /// The name of what owns the pod.
    pub owner_name: String,
}

/// The pod's addresses that the mesh answers for.
pub type Addresses = Vec<IpAddr>;

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name that is fit for a file: `<uid>-<cookie>`.
impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.uid, self.cookie)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

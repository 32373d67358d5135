// SPDX-License-Identifier: Apache-2.0
//! What Culvert's processes say to each other, and the pure rules that they share.
//!
//! Nothing here does I/O: addresses, identities, workloads, the policy and its
//! [`policy::authorize`], and the messages between the CNI plugin and the agent ([`cni`]),
//! the agent and the proxy ([`agent`]), the proxy and control ([`grpc`], behind the feature
//! of that name).

pub mod agent;
pub mod annotations;
pub mod cni;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod identity;
pub mod kubernetes;
pub mod lists;
pub mod policy;
pub mod protocol;
pub mod unmeshable;
pub mod version;
pub mod workload;

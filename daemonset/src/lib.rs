// SPDX-License-Identifier: Apache-2.0
//! The node agent: steers the connections of opted-in pods to the node's proxy.
//!
//! It parses nothing that comes from the network. It enters a pod's namespace only on threads that
//! end there ([`netns`]); each pod has a task of its own ([`pods`]), so that one pod's trouble costs
//! that pod only; what steers a pod ([`enrolment`]) is pinned in the kernel and outlives the agent.

pub mod app;
mod cgroups;
mod cni_install;
mod cni_server;
pub mod config;
mod cri;
mod desired;
mod ebpf;
mod enrolment;
mod follow;
mod keys;
mod kubelet;
mod kubernetes;
mod metrics;
mod netns;
mod pods;
mod proxy_link;
mod reports;
mod running;
mod store;
#[cfg(test)]
mod testing;
mod uninstall;

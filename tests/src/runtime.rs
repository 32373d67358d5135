// SPDX-License-Identifier: Apache-2.0
//! Real container runtimes on a node of a sandbox: containerd, asked by its Container Runtime
//! Interface as a kubelet does, and podman.
//!
//! They run in the node's network namespace, and in mount and process namespaces of their own: when
//! the first process of those is killed, nothing of them is left but a directory and cgroups, which
//! [`space::Space`] removes. Containers are below the cgroup that the node's agent steers.

pub mod chain;
pub mod containerd;
pub mod cri;
pub mod image;
pub mod kubelet;
pub mod podman;
pub mod space;

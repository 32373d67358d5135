// SPDX-License-Identifier: Apache-2.0
//! The programs on the running kernel, as root, in network namespaces and cgroups of their own.

#[path = "kernel/inbound.rs"]
mod inbound;
#[path = "kernel/lifecycle.rs"]
mod lifecycle;
#[path = "kernel/outbound.rs"]
mod outbound;
#[path = "kernel/support.rs"]
mod support;
#[path = "kernel/versions.rs"]
mod versions;

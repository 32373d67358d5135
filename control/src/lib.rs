// SPDX-License-Identifier: Apache-2.0
//! The control plane: destinations, policies and identities over gRPC, from a directory of
//! manifests or from Kubernetes.
//!
//! ```text
//! objects   ──reset──▶ index ──view──▶ discovery ◀──stream──▶ node proxies
//!                        ▲                 │
//!                        └─────report──────┘        identity ◀──certify── node proxies
//! ```
//!
//! The [`index`] is synchronous and does no I/O; everything else follows its views. Losing control
//! closes no connection of a workload: nodes go on with what they know.

pub mod app;
pub mod ca;
pub mod config;
pub mod discovery;
pub mod identity;
pub mod index;
pub mod metrics;
pub mod notices;
pub mod tokens;

mod accept;
mod file;
mod ground;
mod keep;
mod kubernetes;
mod objects;
mod server;
mod serving;
#[cfg(test)]
mod testing;

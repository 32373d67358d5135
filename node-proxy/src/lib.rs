// SPDX-License-Identifier: Apache-2.0
//! The node proxy: mutual TLS, balancing, policy and metrics for every enrolled workload of a node.
//!
//! It runs as a user of its own without capabilities, in a seccomp filter. The agent gives it the
//! pods' listeners and sockets ([`app`] wires it all), control tells it who is where.

mod accept;
mod access_log;
mod agent_link;
pub mod app;
mod backoff;
mod balance;
mod buffer;
mod carry;
mod client_hello;
pub mod config;
mod confine;
mod control_link;
mod descriptors;
mod destinations;
mod detect;
#[cfg(test)]
mod fixture;
mod http;
mod identities;
mod inbound;
mod metrics;
mod outbound;
mod pods;
mod relay;
mod seccomp;
mod sockets;
mod state;
mod tcp;
mod tls;

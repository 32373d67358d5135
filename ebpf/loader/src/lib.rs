// SPDX-License-Identifier: Apache-2.0
//! Loads, attaches and pins Culvert's eBPF programs. The only crate that calls aya.
//!
//! A [`Node`] is what one node's agent keeps in the kernel: the connect hooks of the pods' cgroup,
//! the notes of the kubelet's connections, and for each steered pod one `sk_lookup` program in the
//! pod's network namespace. Everything is pinned, so that steering goes on while the agent is away:
//!
//! ```text
//! <dir>/v<ABI>/node/{connect4,connect6,notes}     links
//! <dir>/v<ABI>/node/{PODS,CONNECTS,EXEMPT,…}      maps
//! <dir>/v<ABI>/pods/<netns cookie>/{link,LOOKUPS} one pod's link and counters
//! ```
//!
//! A restarted agent calls [`Node::load`] and [`Node::attach_pod`] again. Both load fresh programs
//! with fresh maps, fill them, and only then swap them in behind the pinned link, which the kernel
//! does in one step: no connection ever meets a half-made state.

mod error;
mod exclusions;
mod links;
mod logs;
mod node;
mod objects;
mod pins;
mod probe;
mod sys;
mod types;

pub use error::Error;
pub use node::Node;
pub use probe::probe_kernel;
pub use types::{Counters, Exclusions, NodeOptions, PodOptions, Subnet};

// SPDX-License-Identifier: Apache-2.0
//! A Kubernetes cluster as a source of objects.
//!
//! [`Source`] lists and watches what the mesh reads, and goes on through restarts of the API
//! server, expired watches, slow lists and objects that can't be read. What nobody reads of an
//! object is not kept.

mod backoff;
mod client;
mod collected;
mod fault;
mod kinds;
mod reflector;
mod source;
mod status;
mod wire;

pub use self::{
    client::{Error, client},
    source::{Scope, Source},
    status::{Kind, Status},
};

#[cfg(test)]
mod tests;

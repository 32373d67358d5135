// SPDX-License-Identifier: Apache-2.0
//! Control on Kubernetes: where its objects are from, where is kept what nodes report, and how its
//! replicas know of each other.

mod conditions;
mod elsewhere;
mod events;
mod leader;
mod lease;
mod nodes;
mod objects;
mod replicas;
mod retry;

pub(crate) use self::{
    conditions::write,
    elsewhere::{Elsewhere, RECENT},
    events::Events,
    leader::Candidate,
    lease::Own,
    nodes::{NodeId, Nodes},
    objects::{Follower, PENDING},
    replicas::{Others, Replicas, Waiting},
};

// SPDX-License-Identifier: Apache-2.0
//! Control on Kubernetes: where its objects are from, where is kept what nodes report, and how its
//! replicas know of each other.

mod conditions;
mod events;
mod leader;
mod lease;
mod objects;
mod replicas;
mod retry;

pub(crate) use self::{
    conditions::write,
    events::Events,
    leader::Candidate,
    lease::Own,
    objects::{Follower, PENDING},
    replicas::{Others, Replicas},
};

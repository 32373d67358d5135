// SPDX-License-Identifier: Apache-2.0
//! A report as the condition `culvert.io/Meshed` of its pod, where Kubernetes keeps it.
//!
//! Its message has what the status does not say, `netns=12 generation=34 addresses=10.0.0.1`, and
//! `moving=true` where the addresses may change once. What a later release adds is passed over.

use std::fmt;

use culvert_api::{
    kubernetes::MESHED_CONDITION,
    workload::{Addresses, NetnsCookie},
};
use k8s_openapi::api::core::v1;

use super::{Known, Reporter};
use crate::index::addresses;

/// What a condition says, as it is patched into the pod's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `True` or `False`.
    pub status: &'static str,
    /// Why, in one word.
    pub reason: &'static str,
    /// The rest of the report.
    pub message: String,
}

#[derive(Debug, Default)]
struct Message {
    cookie: u64,
    generation: u64,
    addresses: Option<Addresses>,
    moving: bool,
}

impl Known {
    /// As the condition of its pod.
    pub fn condition(&self) -> Condition {
        let (status, reason) = match self.steered {
            true => ("True", "Steered"),
            false => ("False", "Withdrawn"),
        };
        let message = Message {
            cookie: self.cookie.0,
            generation: self.generation,
            addresses: Some(self.addresses.clone()),
            moving: self.moving,
        };
        Condition {
            status,
            reason,
            message: message.to_string(),
        }
    }

    /// What the condition of a pod says, if it has one and it is about the pod as it is.
    ///
    /// A message that is not understood makes no pod unmeshed: peers would dial it in plaintext.
    pub(in crate::index) fn observed(pod: &v1::Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == MESHED_CONDITION)?;
        let now = addresses::of_pod(Some(status));
        let message = Message::parse(condition.message.as_deref().unwrap_or_default());
        let spec = pod.spec.as_ref();
        let known = Self {
            node: spec
                .and_then(|spec| spec.node_name.clone())
                .unwrap_or_default(),
            cookie: NetnsCookie(message.cookie),
            generation: message.generation,
            steered: condition.status == "True",
            addresses: message.addresses.unwrap_or_else(|| now.clone()),
            moving: message.moving,
            version: 0,
            reporter: Reporter::default(),
        };
        (!known.steered || known.is_at(&now)).then_some(known)
    }

    fn is_at(&self, now: &Addresses) -> bool {
        let unknown = self.addresses.is_empty() || now.is_empty();
        unknown || self.moving || super::is_same_pod(&self.addresses, now)
    }
}

// === impl Message ===

impl Message {
    fn parse(text: &str) -> Self {
        let mut message = Self::default();
        for (key, value) in text.split_whitespace().filter_map(|it| it.split_once('=')) {
            match key {
                "netns" => message.cookie = value.parse().unwrap_or_default(),
                "generation" => message.generation = value.parse().unwrap_or_default(),
                "addresses" => {
                    let addresses = value.split(',').filter_map(|ip| ip.parse().ok());
                    message.addresses = Some(addresses.collect());
                }
                "moving" => message.moving = value == "true",
                _ => {}
            }
        }
        message
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "netns={} generation={}", self.cookie, self.generation)?;
        let addresses = self.addresses.iter().flatten().map(ToString::to_string);
        let addresses: Vec<_> = addresses.collect();
        write!(f, " addresses={}", addresses.join(","))?;
        if self.moving {
            write!(f, " moving=true")?;
        }
        Ok(())
    }
}

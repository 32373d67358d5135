// SPDX-License-Identifier: Apache-2.0
//! Looking at the metrics of every proxy of a sandbox.

use std::time::Instant;

use super::{
    api::{NodeStatus, Status},
    error::{Doing, Result},
    http,
    layout::Layout,
    netns::Netns,
    node::PROXY_ADMIN,
    scrape::{self, Sample},
};

/// The proxies that are looked at.
pub struct Watch {
    nodes: Vec<Node>,
    looked: Option<Instant>,
    /// Why a proxy could not be looked at the last time.
    pub trouble: Vec<String>,
}

/// What changed between two looks.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// How much counters have grown, and how the rest is.
    pub samples: Vec<Sample>,
    /// The time between, in seconds; 0 for the first look, which counts from the proxies' start.
    pub seconds: f64,
}

struct Node {
    netns: Netns,
    known: Vec<Sample>,
}

// === impl Watch ===

impl Watch {
    /// Finds the nodes of a sandbox.
    pub fn open(layout: &Layout, status: &Status) -> Result<Self> {
        let name = &layout.name;
        let open = |node: &NodeStatus| {
            let netns = Netns::open(&node.netns).doing(|| format!("enter a node of {name}"))?;
            let known = Vec::new();
            Ok(Node { netns, known })
        };
        Ok(Self {
            nodes: status.nodes.iter().map(open).collect::<Result<_>>()?,
            looked: None,
            trouble: Vec::new(),
        })
    }

    /// What all proxies counted since the last look. One that does not answer counted nothing, and
    /// says it the next time.
    pub async fn look(&mut self) -> Look {
        let mut samples = Vec::new();
        self.trouble.clear();
        for node in &mut self.nodes {
            match http::ask_admin(&node.netns, PROXY_ADMIN, "/metrics").await {
                Ok(answer) => {
                    let now = scrape::parse(&answer.body);
                    samples.extend(scrape::increase(&node.known, &now));
                    node.known = now;
                }
                Err(error) => self.trouble.push(format!(
                    "the proxy in {} does not answer: {error}",
                    node.netns.name
                )),
            }
        }
        let before = self.looked.replace(Instant::now());
        let seconds = before.map_or(0.0, |before| before.elapsed().as_secs_f64());
        Look { samples, seconds }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Looking at the metrics of every proxy.

use super::edges::Edges;
use crate::sandbox::{
    api::Status,
    error::{Doing, Result},
    http,
    layout::Layout,
    netns::Netns,
    node::PROXY_ADMIN,
    scrape,
};

/// The proxies that are looked at.
pub struct Watch {
    nodes: Vec<(Netns, Edges)>,
    /// Why a proxy could not be looked at the last time.
    pub trouble: Vec<String>,
}

// === impl Watch ===

impl Watch {
    /// Finds the nodes of a sandbox.
    pub fn open(layout: &Layout, status: &Status) -> Result<Self> {
        let name = &layout.name;
        let open = |node: &crate::sandbox::api::NodeStatus| {
            let netns = Netns::open(&node.netns).doing(|| format!("enter a node of {name}"))?;
            Ok((netns, Edges::default()))
        };
        Ok(Self {
            nodes: status.nodes.iter().map(open).collect::<Result<_>>()?,
            trouble: Vec::new(),
        })
    }

    /// What all proxies counted; of one that does not answer, what it said before.
    pub async fn look(&mut self) -> Edges {
        let mut all = Edges::default();
        self.trouble.clear();
        for (netns, known) in &mut self.nodes {
            match http::ask_admin(netns, PROXY_ADMIN, "/metrics").await {
                Ok(answer) => {
                    *known = Edges::default();
                    known.add(&scrape::parse(&answer.body));
                }
                Err(error) => {
                    self.trouble.push(format!(
                        "the proxy in {} does not answer: {error}",
                        netns.name
                    ));
                }
            }
            all.merge(known);
        }
        all
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What is counted of destinations: those beyond their limits, and the balancers of services.

use prometheus::{IntCounter, Registry};

use crate::balance::BalancerMetrics;

/// The counters and families. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct DestinationMetrics {
    /// Destinations that were forgotten early, to make room.
    pub(super) evicted: IntCounter,
    /// Destinations that were refused, because all others are in use.
    pub(super) refused: IntCounter,
    /// Of the services among them.
    pub(super) balancers: BalancerMetrics,
}

impl DestinationMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let evicted = IntCounter::new(
            "culvert_proxy_destinations_evicted_total",
            "Destinations that were forgotten early to make room for others.",
        )?;
        let refused = IntCounter::new(
            "culvert_proxy_destinations_refused_total",
            "Destinations that were refused because too many are in use at once.",
        )?;
        registry.register(Box::new(evicted.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self {
            evicted,
            refused,
            balancers: BalancerMetrics::register(registry)?,
        })
    }
}

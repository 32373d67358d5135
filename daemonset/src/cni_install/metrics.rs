// SPDX-License-Identifier: Apache-2.0
//! What is counted of the CNI installation.

use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Handles of the metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Whether `culvert-cni` is chained as it should be.
    pub chained: IntGauge,
    repairs: IntCounterVec,
}

// === impl Metrics ===

impl Metrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let help = "Whether the runtime's first network configuration chains culvert-cni, in step with the network's own.";
        let chained = IntGauge::new("culvert_agent_cni_chained", help)?;
        let help = "Times that somebody changed what the agent installed and it was put right, by what it was.";
        let repairs = Opts::new("culvert_agent_cni_repairs_total", help);
        let repairs = IntCounterVec::new(repairs, &["what"])?;
        registry.register(Box::new(chained.clone()))?;
        registry.register(Box::new(repairs.clone()))?;
        for what in ["conflist", "program"] {
            repairs.with_label_values(&[what]);
        }
        Ok(Self { chained, repairs })
    }

    /// Counts a repair.
    pub fn repair(&self, what: &str) {
        self.repairs.with_label_values(&[what]).inc();
    }

    /// How many repairs there were.
    #[cfg(test)]
    pub fn repairs_of(&self, what: &str) -> u64 {
        self.repairs.with_label_values(&[what]).get()
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Says when the trust anchors end, and in time that one is about to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus::{GaugeVec, Opts, Registry};
use tokio::sync::watch;

use super::{
    Anchors,
    anchors::Anchor,
    metrics::{seconds, short},
};

/// Less than so much is soon; for what lives shorter, a quarter of its life.
const SOON: Duration = Duration::from_secs(60 * 24 * 3600);

/// How often an operator hears of what did not change.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// When the trust anchors end.
#[derive(Clone, Debug)]
pub(crate) struct AnchorMetrics {
    expiration: GaugeVec,
}

// === impl AnchorMetrics ===

impl AnchorMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let expiration = Opts::new(
            "culvert_proxy_trust_anchor_expiration_timestamp_seconds",
            "When a trust anchor ends, by the first bytes of its SHA-256.",
        );
        let expiration = GaugeVec::new(expiration, &["anchor"])?;
        registry.register(Box::new(expiration.clone()))?;
        Ok(Self { expiration })
    }

    /// Follows the anchors, and warns of those that end soon, at first and then each day.
    pub(crate) async fn follow(self, mut anchors: watch::Receiver<Option<Arc<Anchors>>>) {
        let mut labels = BTreeSet::new();
        loop {
            let now = anchors.borrow_and_update().clone();
            let each = now.as_deref().map(|now| &now.each[..]).unwrap_or_default();
            labels = self.set(each, &labels);
            warn(each, SystemTime::now());
            let changed = tokio::time::timeout(AGAIN, anchors.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                // Nobody reads them any more: the proxy ends.
                std::future::pending::<()>().await;
            }
        }
    }

    fn set(&self, each: &[Anchor], before: &BTreeSet<String>) -> BTreeSet<String> {
        let now: BTreeMap<_, _> = each
            .iter()
            .map(|anchor| (short(&anchor.fingerprint), anchor.not_after))
            .collect();
        for (label, not_after) in &now {
            self.expiration
                .with_label_values(&[label])
                .set(seconds(*not_after));
        }
        for gone in before.iter().filter(|label| !now.contains_key(*label)) {
            // It was set before.
            let _ = self.expiration.remove_label_values(&[gone]);
        }
        now.into_keys().collect()
    }
}

fn warn(each: &[Anchor], now: SystemTime) {
    for anchor in each.iter().filter(|anchor| anchor.ends_soon(now)) {
        let left = anchor.not_after.duration_since(now).unwrap_or_default();
        let (anchor, left_hours) = (short(&anchor.fingerprint), left.as_secs() / 3600);
        tracing::warn!(anchor, left_hours, "A trust anchor ends soon, or has ended");
    }
}

// === impl Anchor ===

impl Anchor {
    fn ends_soon(&self, now: SystemTime) -> bool {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or_default();
        now + SOON.min(life / 4) > self.not_after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(number: u8, life: u64, left: u64) -> Anchor {
        let day = |days| Duration::from_secs(days * 24 * 3600);
        let not_after = SystemTime::now() + day(left);
        Anchor {
            fingerprint: [number; 32],
            not_before: not_after - day(life),
            not_after,
        }
    }

    #[test]
    fn soon_is_two_months_or_a_quarter() {
        let now = SystemTime::now();
        for (life, left, soon) in [
            (3650, 61, false),
            (3650, 59, true),
            (40, 11, false),
            (40, 9, true),
        ] {
            assert_eq!(anchor(1, life, left).ends_soon(now), soon, "{life} {left}");
        }
    }

    #[test]
    fn an_anchor_that_is_gone_is_told_no_more() -> Result<(), prometheus::Error> {
        let registry = Registry::new();
        let metrics = AnchorMetrics::register(&registry)?;
        let told = || {
            registry
                .gather()
                .first()
                .map_or(0, |family| family.get_metric().len())
        };
        let labels = metrics.set(&[anchor(1, 100, 50), anchor(2, 100, 50)], &BTreeSet::new());
        assert_eq!(told(), 2);
        let labels = metrics.set(&[anchor(2, 100, 50)], &labels);
        assert_eq!((told(), labels), (1, [short(&[2; 32])].into()));
        Ok(())
    }
}

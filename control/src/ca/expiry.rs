// SPDX-License-Identifier: Apache-2.0
//! Says in time that an issuer or an anchor is about to end.

use std::{fmt, sync::Arc, time::Duration};

use time::OffsetDateTime;
use tokio::sync::watch;

use super::{Authority, CertificateMetrics, Validity};
use crate::notices::{Notice, Notices};

/// Less than so much is soon, as for `linkerd check`; for what lives shorter, a quarter of its life.
const SOON: Duration = Duration::from_hours(60 * 24);

/// How often the metrics are set, and how often an operator hears of what did not change.
const LOOK: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_hours(24);

/// What ends one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiring {
    /// The anchor that vouches for the issuer.
    Anchor,
    /// The issuer.
    Issuer,
}

/// Sets the metrics, and warns, for as long as the process runs.
pub async fn warn(
    authority: watch::Receiver<Arc<Authority>>,
    metrics: CertificateMetrics,
    notices: Notices,
) {
    let mut said: [Option<(Validity, OffsetDateTime)>; 2] = [None, None];
    loop {
        let now = OffsetDateTime::now_utc();
        let all = authority.borrow().expiring();
        for ((what, valid), said) in all.into_iter().zip(&mut said) {
            metrics.expires_in(what, (valid.not_after - now).whole_seconds());
            let again = said.is_none_or(|(of, at)| of != valid || now - at >= AGAIN);
            if again && valid.ends_soon(now) {
                *said = Some((valid, now));
                say(what, valid, now, &notices);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn say(what: Expiring, valid: Validity, now: OffsetDateTime, notices: &Notices) {
    let (ends, left) = (valid.not_after, valid.not_after - now);
    let message = if left.is_positive() {
        format!(
            "The {what} ends in {}, at {ends}: {}",
            humane(left),
            what.remedy()
        )
    } else {
        format!(
            "The {what} ended at {ends}; no certificate is issued: {}",
            what.remedy()
        )
    };
    tracing::warn!(%ends, "{message}");
    notices.say(Notice::warning(what.reason(), message));
}

fn humane(left: time::Duration) -> String {
    let (count, unit) = match (left.whole_days(), left.whole_hours()) {
        (0, 0) => (left.whole_seconds(), "second"),
        (0, hours) => (hours, "hour"),
        (days, _) => (days, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

// === impl Expiring ===

impl Expiring {
    fn reason(self) -> &'static str {
        match self {
            Self::Anchor => "TrustAnchorExpiresSoon",
            Self::Issuer => "IssuerExpiresSoon",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Anchor => "add a new one to the bundle, then make an issuer of it",
            Self::Issuer => "replace it",
        }
    }
}

impl fmt::Display for Expiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anchor => "trust anchor of the issuer",
            Self::Issuer => "issuer",
        })
    }
}

// === impl Validity ===

impl Validity {
    /// Whether less is left than an operator needs.
    fn ends_soon(self, now: OffsetDateTime) -> bool {
        let life: time::Duration = self.not_after - self.not_before;
        let soon = life.whole_seconds() / 4;
        let soon = soon.min(i64::try_from(SOON.as_secs()).unwrap_or(i64::MAX));
        (self.not_after - now).whole_seconds() < soon
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soon_is_two_months_or_a_quarter() {
        let day = time::Duration::DAY;
        let now = OffsetDateTime::now_utc();
        let soon = |life: time::Duration, left: time::Duration| {
            let not_after = now + left;
            let not_before = not_after - life;
            Validity {
                not_before,
                not_after,
            }
            .ends_soon(now)
        };
        for (life, left, expected) in [
            (3650 * day, 61 * day, false),
            (3650 * day, 59 * day, true),
            (365 * day, 59 * day, true),
            (2 * day, day, false),
            (2 * day, day / 3, true),
            (365 * day, -day, true),
        ] {
            assert_eq!(soon(life, left), expected, "{life} {left}");
        }
    }

    #[test]
    fn what_is_left_is_told_for_people() {
        let hour = time::Duration::HOUR;
        let told = [90 * time::Duration::SECOND, 30 * hour, 5 * hour].map(humane);
        assert_eq!(told, ["90 seconds", "1 day", "5 hours"]);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The API server: its version and its clock.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    apimachinery::pkg::version::Info,
    jiff::Timestamp,
};

use super::{
    facts::{Answer, Clock, Leases},
    named,
    nodes::is_ready,
    report::Check,
    unanswered,
};

/// Written for these and later minor versions of Kubernetes 1.
const TESTED_MINOR: u32 = 28;
/// What there is no way to run on: EndpointSlices and bound tokens came later.
const LEAST_MINOR: u32 = 20;
/// Certificates are valid from some time before they are made, which forgives this much.
const NOTABLE_SKEW: Duration = Duration::from_secs(5);
/// A new certificate would not be valid yet, or no longer.
const GREATEST_SKEW: Duration = Duration::from_secs(20);
/// How often a kubelet renews its lease, in seconds, with some of its jitter.
const RENEWED_EVERY: i64 = 15;

/// Whether the server is of a version that Culvert runs on.
pub fn version(version: &Info) -> Check {
    let description = "is running a supported Kubernetes version";
    let found = vec![format!(
        "found {}, expected 1.{TESTED_MINOR} or later",
        version.git_version
    )];
    let hint = "upgrade the cluster";
    match minor(version) {
        Some(minor) if minor >= TESTED_MINOR => Check::good(description),
        Some(minor) if minor >= LEAST_MINOR => Check::warning(
            description,
            found,
            format!("{hint}; what an old API server does not know works in a reduced way"),
        ),
        Some(_) => Check::failed(description, found, hint),
        None => Check::warning(description, found, "the version can't be read"),
    }
}

/// The minor version of Kubernetes 1; vendors write such as "27+".
fn minor(version: &Info) -> Option<u32> {
    let digits = version
        .minor
        .trim_end_matches(|c: char| !c.is_ascii_digit());
    (version.major == "1").then_some(())?;
    digits.parse().ok()
}

/// Whether this machine's clock agrees with the server's.
pub fn clock(clock: Option<Clock>) -> Check {
    let description = "this machine's clock agrees with the API server's";
    let hint = "set this machine's clock (NTP): certificates that are made here begin now";
    let Some(clock) = clock else {
        let found = vec!["the API server told no time".to_owned()];
        return Check::warning(
            description,
            found,
            "a proxy before it may drop the Date header",
        );
    };
    let skew = clock.skew();
    if skew < NOTABLE_SKEW {
        return Check::good(description);
    }
    let found = vec![format!("they are {}s apart", skew.as_secs())];
    if skew < GREATEST_SKEW {
        return Check::warning(description, found, hint);
    }
    Check::failed(description, found, hint)
}

/// Whether the nodes' clocks agree with the server's: a kubelet writes its own time into its lease.
pub fn node_clocks(
    clock: Option<Clock>,
    nodes: &Answer<Vec<Node>>,
    leases: &Answer<Leases>,
) -> Check {
    let description = "the nodes' clocks agree with the API server's";
    let (leases, nodes) = match (leases, nodes) {
        (Ok(leases), Ok(nodes)) => (leases, nodes),
        (Err(refusal), _) | (_, Err(refusal)) => {
            return unanswered(description, refusal).at_most_warning();
        }
    };
    // Without it, the check of this machine's own clock has warned already.
    let now = clock.map_or(leases.at, |clock| clock.at_theirs(leases.at));
    let ready = nodes.iter().filter(|node| is_ready(node));
    let ready: BTreeSet<_> = ready.map(|node| named(&node.metadata)).collect();
    let heard = leases.leases.iter();
    let heard = heard.filter(|lease| ready.contains(named(&lease.metadata)));
    let skewed: Vec<_> = heard.filter_map(|lease| skewed(lease, now)).collect();
    let check = Check::unless(
        skewed.iter().map(|(text, _)| text.clone()).collect(),
        description,
        "set the nodes' clocks (NTP): certificates and tokens are refused by a clock that is off",
    );
    if skewed.iter().any(|(_, far)| *far) {
        return check;
    }
    check.at_most_warning()
}

/// A node whose clock is ahead or behind, and whether so far that nothing works.
fn skewed(lease: &Lease, now: Timestamp) -> Option<(String, bool)> {
    let renewed = lease.spec.as_ref()?.renew_time.as_ref()?.0;
    let ahead = renewed.as_second() - now.as_second();
    let behind = -ahead - RENEWED_EVERY;
    let (by, direction) = match (
        ahead >= seconds(NOTABLE_SKEW),
        behind >= seconds(NOTABLE_SKEW),
    ) {
        (true, _) => (ahead, "ahead"),
        (_, true) => (behind, "behind, at least"),
        _ => return None,
    };
    let text = format!("node {} is {by}s {direction}", named(&lease.metadata));
    Some((text, by >= seconds(GREATEST_SKEW)))
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

// === impl Clock ===

impl Clock {
    /// What theirs says when ours says `ours`.
    pub fn at_theirs(&self, ours: Timestamp) -> Timestamp {
        let since = ours.as_second() - self.after.as_second();
        Timestamp::from_second(self.theirs.as_second() + since).unwrap_or(ours)
    }

    /// How far the clocks are apart at least: theirs is told to the second, and ours went on while
    /// the answer was on its way.
    pub fn skew(&self) -> Duration {
        let ahead = self.theirs.as_second() - self.after.as_second();
        let behind = self.before.as_second() - (self.theirs.as_second() + 1);
        Duration::from_secs(u64::try_from(ahead.max(behind)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::{report::Outcome, testing::from};

    fn info(major: &str, minor: &str) -> Info {
        Info {
            major: major.to_owned(),
            minor: minor.to_owned(),
            git_version: format!("v{major}.{minor}.1"),
            ..Info::default()
        }
    }

    #[test]
    fn old_servers_are_told_apart_from_too_old_ones() {
        assert_eq!(version(&info("1", "28+")).outcome, Outcome::Success);
        assert_eq!(version(&info("1", "35")).outcome, Outcome::Success);
        let old = version(&info("1", "20"));
        assert_eq!(old.outcome, Outcome::Warning);
        assert_eq!(old.found, ["found v1.20.1, expected 1.28 or later"]);
        assert_eq!(version(&info("1", "19")).outcome, Outcome::Error);
        assert_eq!(version(&info("2", "30")).outcome, Outcome::Warning);
        assert_eq!(version(&info("1", "")).outcome, Outcome::Warning);
    }

    fn clock_of(ours: i64, took: i64, theirs: i64) -> Clock {
        let at = |second| Timestamp::from_second(second).unwrap_or_else(|e| panic!("{e}"));
        Clock {
            theirs: at(theirs),
            before: at(ours),
            after: at(ours + took),
        }
    }

    fn clock_at(ours: i64, took: i64, theirs: i64) -> Check {
        clock(Some(clock_of(ours, took, theirs)))
    }

    #[test]
    fn a_slow_answer_is_no_skew() {
        assert_eq!(clock_at(1000, 9, 1004).outcome, Outcome::Success);
        assert_eq!(clock_at(1000, 0, 996).outcome, Outcome::Success);
        assert_eq!(clock_at(1000, 0, 994).found, ["they are 5s apart"]);
        assert_eq!(clock_at(1000, 0, 1005).outcome, Outcome::Warning);
        assert_eq!(clock_at(1000, 0, 1020).outcome, Outcome::Error);
        assert_eq!(clock_at(1000, 0, 100).outcome, Outcome::Error);
        assert_eq!(clock(None).outcome, Outcome::Warning);
    }

    /// By our clock it is 1000 s, by the server's 1100 s.
    fn clocks(leases: &[(&str, i64)], ready: &str) -> Check {
        let clock = clock_of(1000, 0, 1100);
        let at = |second| Timestamp::from_second(second).unwrap_or_else(|e| panic!("{e}"));
        let lease = |(name, renewed): &(&str, i64)| {
            from(json!({
                "metadata": {"name": name},
                "spec": {"renewTime": at(*renewed).to_string()},
            }))
        };
        let node = |(name, _): &(&str, i64)| {
            let ready = json!([{"type": "Ready", "status": ready}]);
            from(json!({"metadata": {"name": name}, "status": {"conditions": ready}}))
        };
        let nodes = Ok(leases.iter().map(node).collect());
        let leases = leases.iter().map(lease).collect();
        let leases = Ok(Leases {
            at: at(1000),
            leases,
        });
        node_clocks(Some(clock), &nodes, &leases)
    }

    #[test]
    fn a_lease_tells_a_nodes_clock() {
        let good = clocks(&[("n1", 1100), ("n2", 1085), ("n3", 1104)], "True");
        assert_eq!(good.outcome, Outcome::Success);
        let warned = clocks(&[("n1", 1100), ("n2", 1107)], "True");
        assert_eq!(warned.outcome, Outcome::Warning);
        assert_eq!(warned.found, ["node n2 is 7s ahead"]);
        let failed = clocks(&[("n1", 4700), ("n2", 1079)], "True");
        assert_eq!(failed.outcome, Outcome::Error);
        let found = ["node n1 is 3600s ahead", "node n2 is 6s behind, at least"];
        assert_eq!(failed.found, found);
    }

    #[test]
    fn a_node_that_is_not_heard_of_has_no_clock() {
        let away = clocks(&[("n1", 100)], "Unknown");
        assert_eq!(away.outcome, Outcome::Success);
    }
}

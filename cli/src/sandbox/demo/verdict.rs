// SPDX-License-Identifier: Apache-2.0
//! What the demonstration showed.

use serde::Serialize;

use super::{
    edges::{Carried, EXPECTED, Edges, Ends},
    evidence::{Found, PLAIN, Report, SECRET, between_meshed},
};
use crate::{
    output::Style,
    sandbox::{
        api::Status,
        error::{Error, Result},
    },
};

/// Everything that was seen and what follows from it.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Whether every check passed.
    pub passed: bool,
    /// The checks.
    pub checks: Vec<Check>,
    edges: Vec<Edge>,
    seconds: f64,
    #[serde(skip)]
    table: Edges,
}

/// What was seen.
pub struct Seen {
    /// What flowed.
    pub edges: Edges,
    /// In how many seconds.
    pub seconds: f64,
    /// What the captures found.
    pub found: Found,
    /// What the traffic generator counted.
    pub client: Report,
}

/// One thing that must hold.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Whether it holds.
    pub passed: bool,
    /// What must hold.
    pub claim: String,
    /// What was seen.
    pub seen: String,
}

#[derive(Debug, Serialize)]
struct Edge {
    #[serde(flatten)]
    ends: Ends,
    #[serde(flatten)]
    carried: Carried,
}

// === impl Verdict ===

impl Verdict {
    /// Judges what was seen.
    pub fn of(seen: Seen, status: &Status) -> Self {
        let Seen {
            edges,
            found,
            client,
            seconds,
        } = seen;
        let mut checks = vec![identities(&edges), nobody_unknown(&edges)];
        checks.extend(application(client));
        checks.extend(link(&found, status));
        checks.extend(control_experiments(&found));
        checks.push(complete(&found));
        let list = edges.carried.iter().map(|(ends, carried)| Edge {
            ends: ends.clone(),
            carried: *carried,
        });
        Self {
            passed: checks.iter().all(|check| check.passed),
            edges: list.collect(),
            checks,
            seconds,
            table: edges,
        }
    }

    /// For people.
    pub fn render(&self, colours: bool) -> String {
        let mut text = String::from("\nWhat flowed while it was watched\n\n");
        let nothing = Edges::default();
        text += &self.table.table(&nothing, self.seconds).render(colours);
        text += "\nWhat that shows\n\n";
        for check in &self.checks {
            let mark = match check.passed {
                true => Style::Good.paint("✓", colours),
                false => Style::Bad.paint("✗", colours),
            };
            text += &format!("{mark} {}: {}\n", check.claim, check.seen);
        }
        text
    }

    /// Fails when a check did.
    pub fn judge(&self) -> Result<()> {
        let failed = self.checks.iter().filter(|check| !check.passed);
        let failed: Vec<_> = failed
            .map(|check| format!("{}: {}", check.claim, check.seen))
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(Error::Demo(failed))
    }
}

fn check(passed: bool, claim: &str, seen: String) -> Check {
    let claim = claim.to_owned();
    Check {
        passed,
        claim,
        seen,
    }
}

fn identities(edges: &Edges) -> Check {
    let claim = "Every service is asked under the identity of its client";
    let missing = edges.missing();
    let expected = EXPECTED
        .map(|(from, to)| format!("{from} → {to}"))
        .join(", ");
    let seen = match missing.is_empty() {
        true => expected,
        false => format!("no connection with mutual TLS {}", missing.join(", ")),
    };
    check(missing.is_empty(), claim, seen)
}

fn nobody_unknown(edges: &Edges) -> Check {
    let unknown = edges.without_identity();
    let claim = "Nobody without an identity asked";
    check(unknown == 0, claim, format!("{unknown} such connections"))
}

fn application(client: Report) -> [Check; 2] {
    let Report {
        ok,
        failed,
        mistaken,
    } = client;
    [
        check(
            ok > 0 && failed == 0,
            "The application works, unmodified",
            format!("{ok} requests answered, {failed} failed"),
        ),
        check(
            ok > 0 && mistaken == 0,
            "The application sees its client's real address",
            format!("{mistaken} of {ok} answers named another one"),
        ),
    ]
}

fn link(found: &Found, status: &Status) -> [Check; 3] {
    let on_link = between_meshed(&found.link, status);
    let frames = found.link.frames;
    let everywhere = found.nodes.found[0] + found.link.found[0];
    [
        check(
            on_link.tls > 0,
            "Meshed pods talk TLS over the link between the nodes",
            format!(
                "{} streams, two to a connection, began with a TLS handshake, in {frames} frames",
                on_link.tls
            ),
        ),
        check(
            on_link.other == 0,
            "Meshed pods talk nothing else over it",
            format!("{} streams began otherwise", on_link.other),
        ),
        check(
            everywhere == 0,
            "No payload is readable outside the pods",
            format!(
                "{SECRET:?} is in {everywhere} of {} frames on the link and in the nodes",
                frames + found.nodes.frames
            ),
        ),
    ]
}

/// Without these the search could be blind.
fn control_experiments(found: &Found) -> [Check; 2] {
    let (plain, inside) = (found.link.found[1], found.inside.found[0]);
    [
        check(
            plain > 0,
            "The same search on the same link finds what unmeshed pods send",
            format!("{PLAIN:?} is in {plain} frames"),
        ),
        check(
            inside > 0,
            "The same search inside a meshed pod finds what it sends",
            format!("{SECRET:?} is in {inside} frames between application and proxy"),
        ),
    ]
}

fn complete(found: &Found) -> Check {
    let lost = found.link.dropped + found.nodes.dropped + found.inside.dropped;
    check(
        lost == 0,
        "The captures are complete",
        format!("{lost} frames lost"),
    )
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: Apache-2.0
//! What the demonstration showed.

use std::collections::BTreeMap;

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
        golden::Golden,
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
    answered: BTreeMap<String, BTreeMap<String, u64>>,
    #[serde(skip)]
    table: Edges,
}

/// What was seen.
pub struct Seen {
    /// What flowed.
    pub edges: Edges,
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
    responses: Golden,
}

/// What db's success rate may be, of which one in 20 fails.
const DB_SUCCESS: std::ops::RangeInclusive<f64> = 0.9..=0.99;

/// Who asked fewer times than this is not judged.
const OFTEN: u64 = 50;

/// What each of two replicas answers at least, in percent. One that has just been slow gets little.
const LEAST_SHARE: u64 = 2;

// === impl Verdict ===

impl Verdict {
    /// Judges what was seen.
    pub fn of(seen: Seen, status: &Status) -> Self {
        let Seen {
            edges,
            found,
            client,
        } = seen;
        let mut checks = vec![identities(&edges), nobody_unknown(&edges)];
        checks.push(measured(&edges));
        checks.extend(application(&client));
        checks.push(spread(&client));
        checks.extend(link(&found, status));
        checks.extend(control_experiments(&found));
        checks.push(complete(&found));
        let list = edges.carried.iter().map(|(ends, carried)| Edge {
            ends: ends.clone(),
            carried: carried.clone(),
            responses: carried.responses.golden(edges.seconds),
        });
        Self {
            passed: checks.iter().all(|check| check.passed),
            edges: list.collect(),
            checks,
            seconds: edges.seconds,
            answered: client.answered,
            table: edges,
        }
    }

    /// For people.
    pub fn render(&self, colours: bool) -> String {
        let mut text = String::from("\nWhat flowed while it was watched\n\n");
        text += &self.table.table().render(colours);
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

/// Everything between the services is answered but what db refuses on purpose.
fn measured(edges: &Edges) -> Check {
    let claim = "The success rate of each service is known per client";
    let of = |(from, to): (&str, &str)| edges.responses(from, to).golden(edges.seconds);
    let as_expected = EXPECTED.iter().all(|&(from, to)| {
        let expected = if to == "db" { DB_SUCCESS } else { 1.0..=1.0 };
        of((from, to))
            .success
            .is_some_and(|success| expected.contains(&success))
    });
    let rates = EXPECTED.map(|(from, to)| match of((from, to)).success {
        Some(success) => format!("{from} → {to} {:.2}%", success * 100.0),
        None => format!("{from} → {to} unknown"),
    });
    let seen = format!(
        "{} (one call of db in 20 fails on purpose)",
        rates.join(", ")
    );
    check(as_expected, claim, seen)
}

/// Whoever asks has one connection, and is answered by every replica.
fn spread(client: &Report) -> Check {
    let claim = "Requests of one connection are spread over the replicas";
    let often = client
        .answered
        .values()
        .filter(|answers| answers.values().sum::<u64>() >= OFTEN);
    let shares: Vec<_> = often.map(least_share).collect();
    let least = shares.iter().copied().min().unwrap_or_default();
    let connections = client.connections;
    let seen = format!(
        "traffic needed {connections} connection(s); {} programs asked, and got at least {least} % of \
         their answers from each replica",
        shares.len()
    );
    check(connections == 1 && least >= LEAST_SHARE, claim, seen)
}

/// The smallest part of the answers that one of the replicas gave, in percent.
fn least_share(answers: &BTreeMap<String, u64>) -> u64 {
    let all: u64 = answers.values().sum();
    match answers.len() {
        0 | 1 => 0,
        _ => answers
            .values()
            .min()
            .map_or(0, |least| least * 100 / all.max(1)),
    }
}

fn application(client: &Report) -> [Check; 2] {
    let Report {
        ok,
        failed,
        mistaken,
        ..
    } = *client;
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

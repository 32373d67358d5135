// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::sandbox::{
    api::PodView,
    capture::{Beginnings, Findings, search::Peers},
};

fn pod(ip: &str) -> PodView {
    PodView {
        ips: vec![ip.into()],
        meshed: true,
        ..PodView::default()
    }
}

fn status() -> Status {
    Status {
        pods: vec![pod("10.244.1.2"), pod("10.244.2.2")],
        ..Status::default()
    }
}

fn edges() -> Edges {
    let mut edges = Edges::default();
    for (from, to) in EXPECTED {
        let ends = Ends {
            client_id: format!("spiffe://cluster.local/ns/demo/sa/{from}"),
            namespace: "demo".into(),
            workload: to.into(),
            service_account: to.into(),
            tls: "true".into(),
        };
        let carried = Carried {
            connections: 1,
            ..Carried::default()
        };
        edges.carried.insert(ends, carried);
    }
    edges
}

fn findings(secret: u64, plain: u64) -> Findings {
    let mut findings = Findings {
        frames: 100,
        found: vec![secret, plain],
        ..Findings::default()
    };
    let peers = Peers {
        from: [10, 244, 1, 2].into(),
        to: [10, 244, 2, 2].into(),
    };
    findings
        .streams
        .insert(peers, Beginnings { tls: 5, other: 0 });
    findings
}

fn found() -> Found {
    Found {
        link: findings(0, 7),
        nodes: findings(0, 7),
        inside: findings(9, 0),
    }
}

const CLIENT: Report = Report {
    ok: 10,
    failed: 0,
    mistaken: 0,
};

fn seen(edges: Edges, found: Found, client: Report) -> Seen {
    let seconds = 2.0;
    Seen {
        edges,
        seconds,
        found,
        client,
    }
}

fn failed(edges: Edges, found: Found, client: Report) -> Vec<String> {
    let verdict = Verdict::of(seen(edges, found, client), &status());
    let failed = verdict.checks.into_iter().filter(|check| !check.passed);
    failed.map(|check| check.claim).collect()
}

#[test]
fn all_is_well() {
    let verdict = Verdict::of(seen(edges(), found(), CLIENT), &status());
    assert!(verdict.judge().is_ok());
    assert!(
        verdict
            .render(false)
            .contains("✓ No payload is readable outside the pods")
    );
}

#[test]
fn each_check_can_fail() {
    let one = |change: &dyn Fn(&mut Found)| {
        let mut found = found();
        change(&mut found);
        failed(edges(), found, CLIENT)
    };
    assert_eq!(
        one(&|f| f.link.found[0] = 1),
        ["No payload is readable outside the pods"]
    );
    assert_eq!(
        one(&|f| f.nodes.found[0] = 1),
        ["No payload is readable outside the pods"]
    );
    assert_eq!(one(&|f| f.link.found[1] = 0).len(), 1);
    assert_eq!(one(&|f| f.inside.found[0] = 0).len(), 1);
    assert_eq!(one(&|f| f.link.dropped = 1), ["The captures are complete"]);
    assert_eq!(one(&|f| f.link.streams.clear()).len(), 1);
    let other = |f: &mut Found| f.link.streams.values_mut().for_each(|b| b.other = 1);
    assert_eq!(one(&other), ["Meshed pods talk nothing else over it"]);
    assert_eq!(failed(Edges::default(), found(), CLIENT).len(), 1);
    assert_eq!(
        failed(
            edges(),
            found(),
            Report {
                failed: 1,
                ..CLIENT
            }
        )
        .len(),
        1
    );
    assert_eq!(
        failed(
            edges(),
            found(),
            Report {
                mistaken: 1,
                ..CLIENT
            }
        )
        .len(),
        1
    );
    assert_eq!(failed(edges(), found(), Report::default()).len(), 2);
}

// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::sandbox::{
    api::PodView,
    capture::{Beginnings, Findings, search::Peers},
    golden::Responses,
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
        let (success, failure) = if to == "db" { (19.0, 1.0) } else { (20.0, 0.0) };
        let responses = Responses {
            success,
            failure,
            ..Responses::default()
        };
        let carried = Carried {
            connections: 1,
            responses,
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

fn client() -> Report {
    let answered = serde_json::json!({
        "traffic-1": {"web-1": 24, "web-2": 26},
        "web-1": {"api-1": 22, "api-2": 30},
        "web-2": {"api-1": 1},
    });
    Report {
        ok: 50,
        connections: 1,
        answered: serde_json::from_value(answered).unwrap_or_default(),
        ..Report::default()
    }
}

fn seen(edges: Edges, found: Found, client: Report) -> Seen {
    Seen {
        edges,
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
    let verdict = Verdict::of(seen(edges(), found(), client()), &status());
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
        failed(edges(), found, client())
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
    assert_eq!(failed(Edges::default(), found(), client()).len(), 2);
}

#[test]
fn each_answer_of_the_application_counts() {
    let one = |change: &dyn Fn(&mut Report)| {
        let mut client = client();
        change(&mut client);
        failed(edges(), found(), client).len()
    };
    assert_eq!(one(&|_| {}), 0);
    assert_eq!(one(&|client| client.failed = 1), 1);
    assert_eq!(one(&|client| client.mistaken = 1), 1);
    assert_eq!(one(&|client| *client = Report::default()), 3);
}

#[test]
fn one_connection_that_one_replica_answers_is_not_spread() {
    let one = |change: &dyn Fn(&mut Report)| {
        let mut client = client();
        change(&mut client);
        failed(edges(), found(), client)
    };
    let claim = ["Requests of one connection are spread over the replicas"];
    assert_eq!(one(&|client| client.connections = 2), claim);
    let stuck = |client: &mut Report| {
        client.answered.remove("traffic-1");
        let only = [("api-1".to_owned(), 60)].into();
        client.answered.insert("web-1".into(), only);
    };
    assert_eq!(one(&stuck), claim);
}

#[test]
fn a_success_rate_that_is_not_the_applications_is_seen() {
    let claim = ["The success rate of each service is known per client"];
    for (to, success, failure) in [("web", 20.0, 1.0), ("db", 20.0, 0.0), ("db", 1.0, 1.0)] {
        let mut edges = edges();
        let ends = edges
            .carried
            .iter_mut()
            .find(|(ends, _)| ends.workload == to);
        if let Some((_, carried)) = ends {
            carried.responses.success = success;
            carried.responses.failure = failure;
        }
        assert_eq!(failed(edges, found(), client()), claim);
    }
}

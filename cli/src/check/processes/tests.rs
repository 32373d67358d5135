// SPDX-License-Identifier: Apache-2.0

use serde_json::{Value, json};

use super::*;
use crate::check::{
    facts::{AdminAnswer, Answer, Refusal},
    report::Outcome,
    testing::{facts, from, node, own_pod},
};

fn not_found<T>(asked: &str) -> Answer<T> {
    let asked = asked.to_owned();
    Err(Refusal {
        asked,
        reason: Reason::NotFound,
    })
}

fn ready(ready: bool) -> Value {
    let status = if ready { "True" } else { "False" };
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": status}]})
}

#[test]
fn each_missing_object_is_named() {
    let mut facts = facts();
    assert_eq!(exist(&facts).outcome, Outcome::Success);
    facts.agent = not_found("get DaemonSet culvert-agent");
    facts.issuer = not_found("get Secret culvert-identity-issuer");
    let check = exist(&facts);
    let expected = [
        "could not get DaemonSet culvert-agent: there is none",
        "could not get Secret culvert-identity-issuer: there is none",
    ];
    assert_eq!(
        (check.outcome, check.found.as_slice()),
        (Outcome::Error, &expected.map(str::to_owned)[..])
    );
    facts.issuer = Err(Refusal {
        asked: "get Secret".to_owned(),
        reason: Reason::Forbidden("no".to_owned()),
    });
    assert_eq!(exist(&facts).found.len(), 1);
    facts.agent = Ok(from(
        json!({"metadata": {}, "spec": {"selector": {}, "template": {}}}),
    ));
    let unknown = exist(&facts);
    assert_eq!(unknown.outcome, Outcome::Warning);
    assert_eq!(unknown.found, ["could not get Secret: no"]);
}

#[test]
fn control_that_does_not_run_is_not_called_one_that_answers() {
    let mut facts = facts();
    assert_eq!(control(&facts).len(), 2);
    facts.admin.clear();
    assert_eq!(control(&facts).len(), 1);
}

#[test]
fn every_node_needs_a_ready_pod() {
    let mut facts = facts();
    facts.nodes = Ok(vec![node("n1"), node("n2"), node("n3")]);
    facts.own = Ok(vec![
        own_pod("DaemonSet", AGENT, "n1", ready(true)),
        own_pod("DaemonSet", AGENT, "n2", ready(false)),
        own_pod("DaemonSet", PROXY, "n3", ready(true)),
    ]);
    let check = on_every_node(&facts, AGENT);
    assert_eq!((check.outcome, check.heals), (Outcome::Error, true));
    let expected = [
        "node n2: pod culvert-agent-n2: it runs, but is not ready",
        "node n3: it has no pod there",
    ];
    assert_eq!(check.found, expected);
}

#[test]
fn a_proxy_that_drains_beside_a_ready_one_is_no_trouble() {
    let mut facts = facts();
    let mut old = own_pod("DaemonSet", PROXY, "n1", ready(true));
    old.metadata.deletion_timestamp = from(json!("2026-01-01T00:00:00Z"));
    let new = own_pod("DaemonSet", PROXY, "n1", ready(true));
    for pods in [vec![old.clone(), new.clone()], vec![new, old.clone()]] {
        facts.own = Ok(pods);
        assert_eq!(on_every_node(&facts, PROXY).outcome, Outcome::Success);
    }
    facts.own = Ok(vec![old]);
    assert_eq!(on_every_node(&facts, PROXY).outcome, Outcome::Error);
}

#[test]
fn an_agent_that_is_not_ready_says_what_it_waits_for() {
    let mut facts = facts();
    let mut waiting = node("n1");
    let status = json!({"culvert.io/agent": r#"{"waitingFor":["a proxy"]}"#});
    waiting.metadata.annotations = from(status);
    facts.nodes = Ok(vec![waiting]);
    facts.own = Ok(vec![own_pod("DaemonSet", AGENT, "n1", ready(false))]);
    let expected = "node n1: pod culvert-agent-n1: it runs, but is not ready, it waits for a proxy";
    assert_eq!(on_every_node(&facts, AGENT).found, [expected]);
}

#[test]
fn a_node_that_the_daemon_set_does_not_select_needs_no_pod() {
    let mut facts = facts();
    facts.own = Ok(vec![]);
    facts.agent = Ok(from(json!({"metadata": {}, "spec": {
        "selector": {}, "template": {"spec": {"containers": [], "nodeSelector": {"mesh": "yes"}}},
    }})));
    assert_eq!(on_every_node(&facts, AGENT).outcome, Outcome::Success);
    let mut labelled = node("n1");
    labelled.metadata.labels = from(json!({"mesh": "yes"}));
    facts.nodes = Ok(vec![labelled]);
    assert_eq!(on_every_node(&facts, AGENT).outcome, Outcome::Error);
}

#[test]
fn control_without_a_pod_says_why() {
    let mut facts = facts();
    facts.own = Ok(vec![]);
    facts.control = Ok(from(json!({
        "metadata": {}, "spec": {"selector": {}, "template": {}},
        "status": {"conditions": [
            {"type": "ReplicaFailure", "status": "True", "message": "quota exceeded"}]},
    })));
    assert_eq!(control_ready(&facts).found, ["quota exceeded"]);
}

#[test]
fn one_ready_replica_of_control_is_enough_to_go_on() {
    let mut facts = facts();
    let pod = |name, is_ready| own_pod("ReplicaSet", CONTROL, name, ready(is_ready));
    facts.own = Ok(vec![pod("n1", true), pod("n2", false)]);
    assert_eq!(control_ready(&facts).outcome, Outcome::Warning);
    facts.own = Ok(vec![pod("n2", false)]);
    assert_eq!(control_ready(&facts).outcome, Outcome::Error);
}

#[test]
fn control_that_waits_says_for_what() {
    let mut facts = facts();
    let answer = |ready: &str| AdminAnswer {
        ready: Ok(ready.to_owned()),
        version: Ok("1\n".to_owned()),
    };
    facts.admin = [("a".to_owned(), answer("ready\n"))].into();
    assert_eq!(control_answers(&facts).outcome, Outcome::Success);
    facts
        .admin
        .insert("b".to_owned(), answer("waiting for the Lease\n"));
    let check = control_answers(&facts);
    assert_eq!(check.outcome, Outcome::Warning);
    assert_eq!(check.found, ["pod b: waiting for the Lease"]);
    facts.admin.remove("a");
    assert_eq!(control_answers(&facts).outcome, Outcome::Error);
}

// SPDX-License-Identifier: Apache-2.0

use serde_json::{Value, json};

use super::*;
use crate::check::{
    report::Outcome,
    testing::{facts, from},
};

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap_or_else(|e| panic!("{e}"))
}

/// A pod that has run for a while.
fn pod(inject: &str, conditions: Value, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u1",
            "creationTimestamp": "1970-01-01T00:00:00Z",
        },
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running", "conditions": conditions},
    });
    if !inject.is_empty() {
        pod["metadata"]["annotations"] = json!({"linkerd.io/inject": inject});
    }
    if let (Some(all), Some(more)) = (pod["spec"].as_object_mut(), spec.as_object()) {
        all.extend(more.clone());
    }
    serde_json::from_value(pod).unwrap_or_else(|e| panic!("{e}"))
}

fn meshed(status: &str) -> Value {
    json!([{"type": "culvert.io/Meshed", "status": status, "reason": "Withdrawn",
        "message": "netns 7, generation 2"}])
}

fn judged(pod: &Pod) -> State {
    let namespace = &Annotations::new();
    let is_refused = false;
    state(
        pod,
        &Place {
            namespace,
            is_refused,
        },
        now(),
    )
}

#[test]
fn opted_in_pods_are_steered_or_not() {
    assert_eq!(
        judged(&pod("enabled", meshed("True"), json!({}))),
        State::Steered
    );
    assert_eq!(
        judged(&pod("enabled", meshed("False"), json!({}))),
        State::Unsteered
    );
    assert_eq!(
        judged(&pod("enabled", json!([]), json!({}))),
        State::Unsteered
    );
    let ingress = pod("ingress", meshed("True"), json!({}));
    assert_eq!(judged(&ingress), State::Steered);
}

#[test]
fn other_pods_are_left_alone_unless_they_are_steered() {
    assert_eq!(judged(&pod("", json!([]), json!({}))), State::Apart);
    assert_eq!(
        judged(&pod("disabled", meshed("False"), json!({}))),
        State::Apart
    );
    assert_eq!(
        judged(&pod("disabled", meshed("True"), json!({}))),
        State::Leaving
    );
    assert_eq!(
        judged(&pod("Enabled", json!([]), json!({}))),
        State::Unreadable
    );
}

#[test]
fn a_namespace_opts_its_pods_in() {
    let namespace = Annotations::from([("culvert.io/inject".to_owned(), "enabled".to_owned())]);
    let place = Place {
        namespace: &namespace,
        is_refused: false,
    };
    let of = |inject| state(&pod(inject, json!([]), json!({})), &place, now());
    assert_eq!(of(""), State::Unsteered);
    assert_eq!(of("disabled"), State::Apart);
}

#[test]
fn what_can_not_be_meshed_or_is_new_or_over_is_told_apart() {
    let host = pod("enabled", json!([]), json!({"hostNetwork": true}));
    assert_eq!(judged(&host), State::Unsupported);
    let mut young = pod("enabled", json!([]), json!({}));
    let made = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now());
    young.metadata.creation_timestamp = Some(made.clone());
    assert_eq!(judged(&young), State::Young);
    let mut leaving = pod("enabled", json!([]), json!({}));
    leaving.metadata.deletion_timestamp = Some(made);
    assert_eq!(judged(&leaving), State::Apart);
    let unplaced = pod("enabled", json!([]), json!({"nodeName": null}));
    assert_eq!(judged(&unplaced), State::Apart);
    let mut over = pod("enabled", meshed("True"), json!({}));
    if let Some(status) = &mut over.status {
        status.phase = Some("Succeeded".to_owned());
    }
    assert_eq!(judged(&over), State::Apart);
}

fn event(source: &str, reason: &str, at: &str) -> Event {
    let event = json!({
        "metadata": {}, "involvedObject": {"uid": "u1"}, "source": {"component": source},
        "reason": reason, "message": "because", "lastTimestamp": at,
    });
    serde_json::from_value(event).unwrap_or_else(|e| panic!("{e}"))
}

fn shown(all: Vec<Event>) -> String {
    let unsteered = pod("enabled", json!([]), json!({}));
    let mut facts = facts();
    facts.events = Ok(all);
    line(&unsteered, State::Unsteered, &events(&facts))
}

#[test]
fn what_the_agent_said_last_is_the_reason() {
    let early = event("culvert-agent", "NotEnrolled", "2026-01-01T00:00:00Z");
    let late = event(
        "culvert-agent",
        "RuntimeUnsupported",
        "2026-01-02T00:00:00Z",
    );
    let kubelet = event("kubelet", "FailedCreatePodSandBox", "2026-01-03T00:00:00Z");
    let other = event("kubelet", "Unhealthy", "2026-01-04T00:00:00Z");
    let expected = "shop/web on n1: RuntimeUnsupported: because";
    let all = vec![early, late, kubelet.clone(), other.clone()];
    assert_eq!(shown(all.clone()), expected);
    assert_eq!(shown(all.into_iter().rev().collect()), expected);
    let expected = "shop/web on n1: FailedCreatePodSandBox: because";
    assert_eq!(shown(vec![kubelet, other.clone()]), expected);
    let expected = "shop/web on n1: no agent has said anything of it";
    assert_eq!(shown(vec![other]), expected);
}

#[test]
fn an_event_of_the_newer_kind_counts_too() {
    let mut event = event("", "HostNetwork", "2026-01-01T00:00:00Z");
    event.reporting_component = Some("culvert-agent".to_owned());
    assert_eq!(shown(vec![event]), "shop/web on n1: HostNetwork: because");
}

#[test]
fn without_an_event_the_condition_tells() {
    let withdrawn = pod("enabled", meshed("False"), json!({}));
    let told = line(&withdrawn, State::Unsteered, &BTreeMap::new());
    assert_eq!(told, "shop/web on n1: Withdrawn netns 7, generation 2");
}

fn outcome(check: &str, facts: &After) -> (Outcome, Vec<String>) {
    let checks = checks(facts);
    let found = checks.iter().find(|it| it.description == check);
    let found = found.unwrap_or_else(|| panic!("no check {check:?}"));
    (found.outcome, found.found.clone())
}

const STEERED: &str = "every opted-in pod is steered";

#[test]
fn what_the_agent_calls_unsupported_is_a_warning_and_nothing_to_wait_for() {
    let mut facts = facts();
    facts.now = now();
    facts.pods = Ok(vec![pod("enabled", json!([]), json!({}))]);
    assert_eq!(outcome(STEERED, &facts).0, Outcome::Error);
    let said = event("culvert-agent", "Unsupported", "2026-01-01T00:00:00Z");
    facts.warnings = Ok(vec![said]);
    assert_eq!(outcome(STEERED, &facts).0, Outcome::Success);
    let expected = vec!["shop/web on n1: Unsupported: because".to_owned()];
    let unsupported = outcome("opted-in pods can be meshed", &facts);
    assert_eq!(unsupported, (Outcome::Warning, expected));
}

#[test]
fn a_pod_with_a_kernel_or_a_mesh_of_its_own_is_unsupported() {
    for spec in [
        json!({"runtimeClassName": "gvisor"}),
        json!({"containers": [{"name": "istio-proxy"}]}),
    ] {
        assert_eq!(judged(&pod("enabled", json!([]), spec)), State::Unsupported);
    }
    let by_condition =
        json!([{"type": "culvert.io/Meshed", "status": "False", "reason": "Unsupported"}]);
    assert_eq!(
        judged(&pod("enabled", by_condition, json!({}))),
        State::Unsupported
    );
}

#[test]
fn pods_of_a_namespace_that_is_left_out_are_unsupported_if_they_ask() {
    let mut facts = facts();
    facts.now = now();
    let args = json!(["--never-mesh=shop"]);
    facts.agent = Ok(from(
        json!({"metadata": {}, "spec": {"selector": {}, "template": {
            "spec": {"containers": [{"name": "agent", "args": args}]},
        }}}),
    ));
    facts.pods = Ok(vec![
        pod("enabled", json!([]), json!({})),
        pod("", json!([]), json!({})),
    ]);
    let expected = vec!["shop/web on n1: pods of its namespace are never meshed".to_owned()];
    let unsupported = outcome("opted-in pods can be meshed", &facts);
    assert_eq!(unsupported, (Outcome::Warning, expected));
    assert_eq!(outcome(STEERED, &facts).0, Outcome::Success);
}

/// A pod that the kubelet has, without a sandbox.
fn creating(conditions: Value) -> Pod {
    let mut pod = pod("enabled", conditions, json!({}));
    if let Some(status) = &mut pod.status {
        status.phase = Some("Pending".to_owned());
    }
    pod
}

#[test]
fn a_pod_without_a_sandbox_has_not_begun() {
    assert_eq!(judged(&creating(json!([]))), State::NotStarted);
    let ready = |status| creating(json!([{"type": "PodReadyToStartContainers", "status": status}]));
    assert_eq!(judged(&ready("False")), State::NotStarted);
    assert_eq!(judged(&ready("True")), State::Unsteered);
    let mut with_address = creating(json!([]));
    if let Some(status) = &mut with_address.status {
        status.pod_ip = Some("10.0.0.1".to_owned());
    }
    assert_eq!(judged(&with_address), State::Unsteered);
}

#[test]
fn a_pod_that_we_keep_from_beginning_is_an_error_all_the_same() {
    let mut facts = facts();
    facts.now = now();
    facts.pods = Ok(vec![creating(json!([]))]);
    let begun = "opted-in pods have begun";
    assert_eq!(outcome(begun, &facts).0, Outcome::Warning);
    assert_eq!(outcome(STEERED, &facts).0, Outcome::Success);
    let mut failed = event("kubelet", "FailedCreatePodSandBox", "2026-01-03T00:00:00Z");
    facts.events = Ok(vec![failed.clone()]);
    assert_eq!(outcome(STEERED, &facts).0, Outcome::Success);
    failed.message = Some("plugin type=\"culvert-cni\" failed (add): no agent".to_owned());
    facts.events = Ok(vec![failed]);
    assert_eq!(outcome(STEERED, &facts).0, Outcome::Error);
    assert_eq!(outcome(begun, &facts).0, Outcome::Success);
}

// SPDX-License-Identifier: Apache-2.0

use serde_json::{Value, json};

use super::*;

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
    state(pod, &Annotations::new(), now())
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
    let of = |inject| state(&pod(inject, json!([]), json!({})), &namespace, now());
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
    let all = Ok(all);
    line(&unsteered, State::Unsteered, &events(&all))
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

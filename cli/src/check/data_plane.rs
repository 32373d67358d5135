// SPDX-License-Identifier: Apache-2.0
//! The pods: whether each that is opted in is really steered, and why not.

use std::collections::BTreeMap;

use culvert_api::{
    annotations::{self, Annotations, INJECT},
    kubernetes::{AGENT_EVENTS, CONTROL_EVENTS, MESHED_CONDITION},
};
use k8s_openapi::{
    api::core::v1::{Event, Namespace, Pod, PodStatus},
    jiff::Timestamp,
};

use super::{
    events::{last, source},
    facts::{After, Answer},
    named,
    report::Check,
    trouble::condition,
    unanswered,
};

/// Its pods are never meshed.
const KUBE_SYSTEM: &str = "kube-system";
/// How long a new pod may take before it is called late, in seconds.
const YOUNG: i64 = 30;

/// What a pod is, judged by its annotations and its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Neither opted in nor steered, or ended.
    Apart,
    /// Opted in and steered.
    Steered,
    /// Opted in, and not steered.
    Unsteered,
    /// Opted in, not steered, and too new for that to mean anything.
    Young,
    /// Opted in, and can't be.
    Unsupported,
    /// Not opted in, and steered.
    Leaving,
    /// The opt-in says neither `enabled` nor `disabled`.
    Unreadable,
}

/// All that concerns pods.
pub fn checks(facts: &After) -> Vec<Check> {
    let description = "every opted-in pod is steered";
    let states = match states(facts) {
        Ok(states) => states,
        Err(refusal) => return vec![unanswered(description, refusal)],
    };
    let events = events(&facts.events);
    let of = |wanted: &'static [State]| {
        let named = states.iter().filter(|(_, state)| wanted.contains(state));
        let lines = named.map(|(pod, state)| line(pod, *state, &events));
        lines.collect::<Vec<_>>()
    };
    vec![
        Check::unless(of(&[State::Unsteered]), description, UNSTEERED_HINT).heals(),
        Check::unless(
            of(&[State::Young]),
            "no opted-in pod is still to be steered",
            "they began less than half a minute ago: look again",
        )
        .at_most_warning(),
        Check::unless(
            of(&[State::Unsupported]),
            "opted-in pods can be meshed",
            "a pod in its host's network can't be: opt it out with culvert.io/inject: disabled",
        )
        .at_most_warning(),
        Check::unless(
            of(&[State::Leaving]),
            "no pod is steered that is not opted in",
            "it leaves when its open connections end; if it stays: the log of its node's agent",
        )
        .at_most_warning(),
        Check::unless(
            of(&[State::Unreadable]),
            "opt-ins are understood",
            "culvert.io/inject is \"enabled\" or \"disabled\"; other values do not mesh the pod",
        )
        .at_most_warning(),
    ]
}

const UNSTEERED_HINT: &str = "\
`kubectl describe pod` shows the condition culvert.io/Meshed and the events of culvert-agent
while a pod is not steered it talks in plaintext, or waits; peers call it unmeshed";

/// The pods that ask for the mesh and are not in it: somebody may have said why.
pub fn in_question(facts: &After) -> Vec<&Pod> {
    let states = states(facts).unwrap_or_default();
    let asked = [State::Unsteered, State::Unsupported, State::Unreadable];
    let questioned = states
        .into_iter()
        .filter(|(_, state)| asked.contains(state));
    questioned.map(|(pod, _)| pod).collect()
}

fn states(facts: &After) -> Result<Vec<(&Pod, State)>, &super::facts::Refusal> {
    let pods = facts.pods.as_ref()?;
    let namespaces = by_name(facts.namespaces.as_ref()?);
    let none = Annotations::new();
    let state = |pod: &Pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if [KUBE_SYSTEM, &facts.namespace].contains(&namespace) {
            return State::Apart;
        }
        let inherited = namespaces.get(namespace).copied().unwrap_or(&none);
        state(pod, inherited, facts.now)
    };
    Ok(pods.iter().map(|pod| (pod, state(pod))).collect())
}

fn by_name(namespaces: &[Namespace]) -> BTreeMap<&str, &Annotations> {
    namespaces
        .iter()
        .filter_map(|namespace| {
            let annotations = namespace.metadata.annotations.as_ref()?;
            Some((named(&namespace.metadata), annotations))
        })
        .collect()
}

/// What the pod is. Pure.
pub fn state(pod: &Pod, namespace: &Annotations, now: Timestamp) -> State {
    let none = (Annotations::new(), PodStatus::default());
    let own = pod.metadata.annotations.as_ref().unwrap_or(&none.0);
    let status = pod.status.as_ref().unwrap_or(&none.1);
    if has_ended(pod, status) {
        return State::Apart;
    }
    let meshed = condition(status, MESHED_CONDITION);
    let steered = meshed.is_some_and(|meshed| meshed.status == "True");
    // Linkerd's "ingress" is "enabled" here.
    match (annotations::effective(INJECT, own, namespace), steered) {
        (Some("enabled" | "ingress"), true) => State::Steered,
        (Some("enabled" | "ingress"), false) if on_host_network(pod) => State::Unsupported,
        (Some("enabled" | "ingress"), false) if is_young(pod, now) => State::Young,
        (Some("enabled" | "ingress"), false) => State::Unsteered,
        (_, true) => State::Leaving,
        (None | Some("disabled"), false) => State::Apart,
        (Some(_), false) => State::Unreadable,
    }
}

/// A pod that no node has, or that is going, is nobody's to steer.
fn has_ended(pod: &Pod, status: &PodStatus) -> bool {
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let placed = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.is_some());
    ended || !placed || pod.metadata.deletion_timestamp.is_some()
}

fn on_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

fn is_young(pod: &Pod, now: Timestamp) -> bool {
    let made = pod.metadata.creation_timestamp.as_ref();
    made.is_some_and(|made| now.as_second() - made.0.as_second() < YOUNG)
}

fn line(pod: &Pod, state: State, events: &BTreeMap<&str, &Event>) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let mut line = format!(
        "{namespace}/{} on {}",
        named(&pod.metadata),
        node.unwrap_or("no node")
    );
    if let Some(why) = why(pod, state, events) {
        line = format!("{line}: {why}");
    }
    line
}

/// What was said of it, else what its condition says.
fn why(pod: &Pod, state: State, events: &BTreeMap<&str, &Event>) -> Option<String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if let Some(event) = events.get(uid).filter(|_| state != State::Leaving) {
        let message = event.message.as_deref().unwrap_or_default();
        return Some(format!(
            "{}: {message}",
            event.reason.as_deref().unwrap_or("Event")
        ));
    }
    if state == State::Unsupported {
        return Some("it is in its host's network".to_owned());
    }
    let meshed = condition(pod.status.as_ref()?, MESHED_CONDITION);
    let Some(meshed) = meshed else {
        return (state == State::Unsteered).then(|| "no agent has said anything of it".to_owned());
    };
    let reason = meshed.reason.as_deref().unwrap_or(&meshed.status);
    let message = meshed.message.as_deref().unwrap_or_default();
    Some(format!("{reason} {message}").trim_end().to_owned())
}

/// The newest that Culvert said of each pod, by uid; else why its sandbox could not be made.
fn events(events: &Answer<Vec<Event>>) -> BTreeMap<&str, &Event> {
    let mut newest = BTreeMap::<_, &Event>::new();
    for event in events.as_ref().map(Vec::as_slice).unwrap_or_default() {
        let Some(uid) = event.involved_object.uid.as_deref() else {
            continue;
        };
        let rank = rank(event);
        let before = newest.get(uid).map_or((0, None), |event| self::rank(event));
        if rank.0 > 0 && rank >= before {
            newest.insert(uid, event);
        }
    }
    newest
}

/// Ours before the kubelet's, later before earlier; 0 is nobody's.
fn rank(event: &Event) -> (u8, Option<Timestamp>) {
    let rank = match (source(event), event.reason.as_deref()) {
        (AGENT_EVENTS | CONTROL_EVENTS, _) => 2,
        (_, Some("FailedCreatePodSandBox")) => 1,
        _ => 0,
    };
    (rank, last(event))
}

#[cfg(test)]
mod tests;

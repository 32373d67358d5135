// SPDX-License-Identifier: Apache-2.0
//! The pods: whether each that is opted in is really steered, and why not.

use std::collections::{BTreeMap, BTreeSet};

use culvert_api::{
    annotations::{self, Annotations, INJECT},
    kubernetes::{AGENT_EVENTS, CONTROL_EVENTS, MESHED_CONDITION, UNSUPPORTED},
};
use k8s_openapi::{
    api::core::v1::{Event, Namespace, Pod, PodStatus},
    jiff::Timestamp,
};

use super::{
    events::{last, source},
    facts::After,
    named,
    report::Check,
    trouble::condition,
    unanswered, unsupported,
};

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
    /// Opted in, and has no network yet: an image, a volume or a Secret is missing, or the runtime is busy.
    NotStarted,
    /// Opted in, and can't be.
    Unsupported,
    /// Not opted in, and steered.
    Leaving,
    /// The opt-in says neither `enabled` nor `disabled`.
    Unreadable,
}

/// What else is known of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The annotations of its namespace.
    pub namespace: &'a Annotations,
    /// Whether its namespace is never meshed, or its agent said that it can't be.
    pub is_refused: bool,
}

/// All that concerns pods.
pub fn checks(facts: &After) -> Vec<Check> {
    let description = "every opted-in pod is steered";
    let states = match states(facts) {
        Ok(states) => states,
        Err(refusal) => return vec![unanswered(description, refusal)],
    };
    let events = events(facts);
    let of = |wanted: State| {
        let state = |pod, state| held(pod, state, &events);
        let named = states
            .iter()
            .filter(|(pod, was)| state(pod, *was) == wanted);
        let lines = named.map(|(pod, _)| line(pod, wanted, &events));
        lines.collect::<Vec<_>>()
    };
    let unsteered = Check::unless(of(State::Unsteered), description, UNSTEERED_HINT).heals();
    let rest = WARNINGS.map(|(state, description, hint)| {
        Check::unless(of(state), description, hint).at_most_warning()
    });
    std::iter::once(unsteered).chain(rest).collect()
}

const WARNINGS: [(State, &str, &str); 5] = [
    (
        State::Young,
        "no opted-in pod is still to be steered",
        "they began less than half a minute ago: look again",
    ),
    (
        State::NotStarted,
        "opted-in pods have begun",
        "nothing of them runs or talks yet; `kubectl describe pod` says what they wait for",
    ),
    (
        State::Unsupported,
        "opted-in pods can be meshed",
        "opt them out with culvert.io/inject: disabled, or change what is named; Culvert does not encrypt what they say",
    ),
    (
        State::Leaving,
        "no pod is steered that is not opted in",
        "it leaves when its open connections end; if it stays: the log of its node's agent",
    ),
    (
        State::Unreadable,
        "opt-ins are understood",
        "culvert.io/inject is \"enabled\" or \"disabled\"; other values do not mesh the pod",
    ),
];

/// A pod that has not begun because of us is not steered: it waits for that.
fn held(pod: &Pod, state: State, events: &BTreeMap<&str, &Event>) -> State {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    match events.get(uid) {
        Some(event) if state == State::NotStarted && is_of_ours(event) => State::Unsteered,
        _ => state,
    }
}

const UNSTEERED_HINT: &str = "\
`kubectl describe pod` shows the condition culvert.io/Meshed and the events of culvert-agent
while a pod is not steered it talks in plaintext, or waits; peers call it unmeshed";

/// The pods that ask for the mesh and are not in it: somebody may have said why.
pub fn in_question(facts: &After) -> Vec<&Pod> {
    let states = states(facts).unwrap_or_default();
    let asked = [
        State::Unsteered,
        State::NotStarted,
        State::Unsupported,
        State::Unreadable,
    ];
    let questioned = states
        .into_iter()
        .filter(|(_, state)| asked.contains(state));
    questioned.map(|(pod, _)| pod).collect()
}

fn states(facts: &After) -> Result<Vec<(&Pod, State)>, &super::facts::Refusal> {
    let pods = facts.pods.as_ref()?;
    let namespaces = by_name(facts.namespaces.as_ref()?);
    let none = Annotations::new();
    let (never, refused) = (unsupported::never_mesh(facts), refused(facts));
    let state = |pod: &Pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let place = Place {
            namespace: namespaces.get(namespace).copied().unwrap_or(&none),
            is_refused: never.contains(namespace) || refused.contains(uid),
        };
        state(pod, &place, facts.now)
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

/// The pods that agents said of that they can't be meshed, by uid.
fn refused(facts: &After) -> BTreeSet<&str> {
    let events = facts.warnings.iter().flatten();
    let refused = events.filter(|event| event.reason.as_deref() == Some(UNSUPPORTED));
    refused
        .filter_map(|event| event.involved_object.uid.as_deref())
        .collect()
}

/// What the pod is. Pure.
pub fn state(pod: &Pod, place: &Place<'_>, now: Timestamp) -> State {
    let none = (Annotations::new(), PodStatus::default());
    let own = pod.metadata.annotations.as_ref().unwrap_or(&none.0);
    let status = pod.status.as_ref().unwrap_or(&none.1);
    if has_ended(pod, status) {
        return State::Apart;
    }
    let meshed = condition(status, MESHED_CONDITION);
    let steered = meshed.is_some_and(|meshed| meshed.status == "True");
    // Linkerd's "ingress" is "enabled" here.
    match (
        annotations::effective(INJECT, own, place.namespace),
        steered,
    ) {
        (Some("enabled" | "ingress"), true) => State::Steered,
        (Some("enabled" | "ingress"), false) => unsteered(pod, place, status, now),
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

fn unsteered(pod: &Pod, place: &Place<'_>, status: &PodStatus, now: Timestamp) -> State {
    let is_said = condition(status, MESHED_CONDITION)
        .is_some_and(|meshed| meshed.reason.as_deref() == Some(UNSUPPORTED));
    if place.is_refused || is_said || unsupported::why(pod).is_some() {
        return State::Unsupported;
    }
    match (is_young(pod, now), has_not_begun(status)) {
        (true, _) => State::Young,
        (false, true) => State::NotStarted,
        (false, false) => State::Unsteered,
    }
}

/// Whether it has no sandbox yet, and so no network and no process. The kubelet says so since 1.29;
/// before that an address says that there is one.
fn has_not_begun(status: &PodStatus) -> bool {
    let told = condition(status, "PodReadyToStartContainers");
    let has_sandbox = match told {
        Some(told) => told.status == "True",
        None => status.pod_ip.as_ref().is_some_and(|ip| !ip.is_empty()),
    };
    status.phase.as_deref() == Some("Pending") && !has_sandbox
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
        let never = || "pods of its namespace are never meshed".to_owned();
        return Some(unsupported::why(pod).unwrap_or_else(never));
    }
    let meshed = condition(pod.status.as_ref()?, MESHED_CONDITION);
    let Some(meshed) = meshed.filter(|_| state != State::NotStarted) else {
        return (state == State::Unsteered).then(|| "no agent has said anything of it".to_owned());
    };
    let reason = meshed.reason.as_deref().unwrap_or(&meshed.status);
    let message = meshed.message.as_deref().unwrap_or_default();
    Some(format!("{reason} {message}").trim_end().to_owned())
}

/// The newest that Culvert said of each pod, by uid; else why its sandbox could not be made.
fn events(facts: &After) -> BTreeMap<&str, &Event> {
    let mut newest = BTreeMap::<_, &Event>::new();
    for event in facts.events.iter().chain(&facts.warnings).flatten() {
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

/// Whether it says that we keep a pod from beginning: the kubelet quotes the plugin that failed.
fn is_of_ours(event: &Event) -> bool {
    let message = event.message.as_deref().unwrap_or_default();
    match event.reason.as_deref() {
        Some("FailedCreatePodSandBox") => message.contains("culvert"),
        reason => reason == Some("NotSteered"),
    }
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

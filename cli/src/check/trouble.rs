// SPDX-License-Identifier: Apache-2.0
//! Why a pod of Culvert's own is not ready, as its status has it.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Event, Pod,
    PodCondition, PodStatus,
};

use super::{events::last, named};

/// Messages of containers may be whole logs.
const MOST_OF_A_MESSAGE: usize = 300;

/// Why the pod is not ready; nothing if it is. What was said of a pod that has not begun says more
/// than its status does.
pub fn of(pod: &Pod, events: &[Event]) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    if is_ready(&status) && pod.metadata.deletion_timestamp.is_none() {
        return None;
    }
    let said = || newest(pod, events).filter(|_| has_not_begun(&status));
    let why = leaving(pod)
        .or_else(said)
        .or_else(|| unscheduled(&status))
        .or_else(|| containers(&status))
        .or_else(|| failed(&status))
        .unwrap_or_else(|| "it runs, but is not ready".to_owned());
    Some(format!("pod {}: {why}", named(&pod.metadata)))
}

/// What was warned of it last.
fn newest(pod: &Pod, all: &[Event]) -> Option<String> {
    let of = |event: &&Event| {
        let uid = event.involved_object.uid.as_deref();
        uid.is_some() && uid == pod.metadata.uid.as_deref()
    };
    let event = all.iter().filter(of).max_by_key(|event| last(event))?;
    let message = event.message.as_deref().unwrap_or_default();
    let reason = event.reason.as_deref().unwrap_or("Event");
    Some(format!("{reason}: {}", cut(message)))
}

/// Whether no container has run yet, nor said why not.
fn has_not_begun(status: &PodStatus) -> bool {
    let waits = |container: &ContainerStatus| {
        let waiting = container.state.as_ref().and_then(|it| it.waiting.as_ref());
        let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
        matches!(reason, Some("ContainerCreating" | "PodInitializing"))
    };
    status.container_statuses.iter().flatten().all(waits)
}

/// Whether it is ready, as the kubelet says.
pub fn is_ready(status: &PodStatus) -> bool {
    condition(status, "Ready").is_some_and(|ready| ready.status == "True")
}

/// A condition of a pod.
pub fn condition<'a>(status: &'a PodStatus, type_: &str) -> Option<&'a PodCondition> {
    let conditions = status.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

fn leaving(pod: &Pod) -> Option<String> {
    pod.metadata.deletion_timestamp.as_ref()?;
    Some("it is being deleted".to_owned())
}

fn unscheduled(status: &PodStatus) -> Option<String> {
    let scheduled = condition(status, "PodScheduled").filter(|it| it.status == "False")?;
    let message = scheduled.message.as_deref().unwrap_or("no reason told");
    Some(format!("no node takes it: {}", cut(message)))
}

fn containers(status: &PodStatus) -> Option<String> {
    let init = status.init_container_statuses.iter().flatten();
    let all = init.chain(status.container_statuses.iter().flatten());
    let troubles: Vec<_> = all.filter_map(container).collect();
    (!troubles.is_empty()).then(|| troubles.join("; "))
}

fn container(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    let why = match state {
        ContainerState {
            waiting: Some(waiting),
            ..
        } => waits(waiting),
        ContainerState {
            terminated: Some(ended),
            ..
        } if ended.exit_code != 0 => ended_with(ended),
        _ if status.ready => return None,
        ContainerState { running: None, .. } => return None,
        _ => "runs, but is not ready".to_owned(),
    };
    let last = status.last_state.as_ref();
    let last = last
        .and_then(|last| last.terminated.as_ref())
        .map(ended_with);
    let last = last
        .map(|last| format!(", before it {last}"))
        .unwrap_or_default();
    let restarts = match status.restart_count {
        0 => String::new(),
        count => format!(" ({count} restarts)"),
    };
    Some(format!("container {} {why}{last}{restarts}", status.name))
}

fn waits(waiting: &ContainerStateWaiting) -> String {
    let reason = waiting.reason.as_deref().unwrap_or("waits");
    // The kubelet's back-off message says no more than its reason.
    match waiting
        .message
        .as_deref()
        .filter(|_| reason != "CrashLoopBackOff")
    {
        Some(message) => format!("is in {reason}: {}", cut(message)),
        None => format!("is in {reason}"),
    }
}

fn ended_with(ended: &ContainerStateTerminated) -> String {
    let reason = ended.reason.as_deref().unwrap_or("Error");
    let message = ended.message.as_deref().unwrap_or_default().trim();
    let code = ended.exit_code;
    if message.is_empty() {
        return format!("ended with {code} ({reason})");
    }
    format!("ended with {code} ({reason}): {}", cut(message))
}

fn failed(status: &PodStatus) -> Option<String> {
    let phase = status.phase.as_deref()?;
    if phase == "Running" {
        return None;
    }
    let why = status.message.as_deref().or(status.reason.as_deref());
    Some(format!(
        "{phase}{}",
        why.map(|why| format!(": {}", cut(why))).unwrap_or_default()
    ))
}

/// The end of a message is what a process said last.
fn cut(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let length = line.chars().count();
    if length <= MOST_OF_A_MESSAGE {
        return line;
    }
    let end: String = line.chars().skip(length - MOST_OF_A_MESSAGE).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::check::testing::from;

    fn trouble(status: Value) -> Option<String> {
        let pod = json!({"metadata": {"name": "p"}, "status": status});
        of(&from(pod), &[])
    }

    fn container(state: Value, last: Value, restarts: i32) -> Value {
        json!({"phase": "Running", "containerStatuses": [{
            "name": "agent", "ready": false, "restartCount": restarts, "image": "", "imageID": "",
            "state": state, "lastState": last,
        }]})
    }

    #[test]
    fn a_ready_pod_has_no_trouble() {
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(trouble(ready), None);
    }

    #[test]
    fn a_pod_that_crashes_says_its_last_words() {
        let status = container(
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}}),
            json!({"terminated": {"exitCode": 78, "reason": "Error", "message": "no bpffs\n"}}),
            7,
        );
        let expected = "pod p: container agent is in CrashLoopBackOff, \
            before it ended with 78 (Error): no bpffs (7 restarts)";
        assert_eq!(trouble(status).as_deref(), Some(expected));
    }

    #[test]
    fn an_image_that_is_not_there_is_named() {
        let status = container(
            json!({"waiting": {"reason": "ErrImagePull", "message": "x not found"}}),
            json!({}),
            0,
        );
        let expected = "pod p: container agent is in ErrImagePull: x not found";
        assert_eq!(trouble(status).as_deref(), Some(expected));
    }

    #[test]
    fn a_pod_that_runs_and_is_not_ready_is_told_from_one_that_no_node_takes() {
        let running = container(json!({"running": {}}), json!({}), 0);
        let expected = "pod p: container agent runs, but is not ready";
        assert_eq!(trouble(running).as_deref(), Some(expected));
        let pending = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]});
        let expected = "pod p: no node takes it: 0/3 nodes";
        assert_eq!(trouble(pending).as_deref(), Some(expected));
        let evicted = json!({"phase": "Failed", "reason": "Evicted"});
        assert_eq!(trouble(evicted).as_deref(), Some("pod p: Failed: Evicted"));
    }

    #[test]
    fn of_a_long_message_the_end_is_shown() {
        let long = format!("{}the end", "a".repeat(1000));
        assert!(cut(&long).starts_with("…a") && cut(&long).ends_with("the end"));
        assert_eq!(cut(&long).chars().count(), MOST_OF_A_MESSAGE + 1);
    }

    #[test]
    fn of_a_pod_that_has_not_begun_the_newest_warning_is_shown() {
        let state = json!({"waiting": {"reason": "ContainerCreating"}});
        let mut pod: Pod = from(json!({
            "metadata": {"name": "p", "uid": "u"},
            "status": container(state, json!({}), 0),
        }));
        let event = |uid: &str, at: &str, message: &str| -> Event {
            from(json!({
                "metadata": {}, "involvedObject": {"uid": uid}, "lastTimestamp": at,
                "reason": "FailedCreatePodSandBox", "message": message,
            }))
        };
        let all = [
            event("u", "2026-01-02T00:00:00Z", "no image"),
            event("u", "2026-01-01T00:00:00Z", "no network"),
            event("v", "2026-01-03T00:00:00Z", "another's"),
        ];
        let expected = "pod p: FailedCreatePodSandBox: no image";
        assert_eq!(of(&pod, &all).as_deref(), Some(expected));
        pod.status = from(container(json!({"running": {}}), json!({}), 0));
        let expected = "pod p: container agent runs, but is not ready";
        assert_eq!(of(&pod, &all).as_deref(), Some(expected));
    }
}

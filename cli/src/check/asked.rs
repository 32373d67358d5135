// SPDX-License-Identifier: Apache-2.0
//! What pods and namespaces ask for by annotations and can't have, as the agents said in events.

use std::collections::BTreeSet;

use k8s_openapi::{api::core::v1::Event, jiff::Timestamp};

use super::{data_plane, events::last, facts::After, report::Check, unanswered};

/// One line for each warning on what is still there, and is not told of by another check.
pub fn check(facts: &After) -> Check {
    let description = "what pods and namespaces ask for can be had";
    let warnings = match &facts.warnings {
        Ok(warnings) => warnings,
        Err(refusal) => return unanswered(description, refusal).at_most_warning(),
    };
    let there = there(facts);
    let found = warnings.iter().filter(|event| {
        let uid = event.involved_object.uid.as_deref();
        uid.is_some_and(|uid| there.contains(uid))
    });
    let mut found: Vec<_> = found.map(|event| line(event, facts.now)).collect();
    found.sort();
    found.dedup();
    Check::unless(
        found,
        description,
        "correct the annotation, or take it away; what is put right is listed for an hour still",
    )
    .at_most_warning()
}

fn there(facts: &After) -> BTreeSet<&str> {
    let pods = facts.pods.iter().flatten().map(|pod| &pod.metadata);
    let namespaces = facts.namespaces.iter().flatten();
    let all = pods.chain(namespaces.map(|namespace| &namespace.metadata));
    let mut there: BTreeSet<_> = all.filter_map(|it| it.uid.as_deref()).collect();
    for pod in data_plane::in_question(facts) {
        there.remove(pod.metadata.uid.as_deref().unwrap_or_default());
    }
    there
}

fn line(event: &Event, now: Timestamp) -> String {
    let object = &event.involved_object;
    let kind = object.kind.as_deref().unwrap_or_default().to_lowercase();
    let namespace = object.namespace.as_deref().filter(|_| kind == "pod");
    let name = object.name.as_deref().unwrap_or_default();
    let name = match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => format!("{kind} {name}"),
    };
    let message = event.message.as_deref().unwrap_or_default();
    match last(event).map(|at| now.as_second() - at.as_second()) {
        Some(age) if age >= 60 => format!("{name}: {message} ({}m ago)", age / 60),
        _ => format!("{name}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::testing::{facts, from};

    fn event(uid: &str, kind: &str, name: &str) -> Event {
        from(json!({
            "metadata": {}, "message": "the annotation x is unknown", "eventTime":
            "1970-01-01T00:05:00.000000Z",
            "involvedObject": {"uid": uid, "kind": kind, "namespace": "shop", "name": name},
        }))
    }

    #[test]
    fn what_is_gone_or_told_elsewhere_is_left_out() {
        let mut facts = facts();
        let pod = |uid, host| {
            from(json!({
                "metadata": {"name": uid, "namespace": "shop", "uid": uid,
                    "annotations": {"culvert.io/inject": "enabled"}},
                "spec": {"nodeName": "n1", "hostNetwork": host, "containers": []},
                "status": {"conditions": [
                    {"type": "culvert.io/Meshed", "status": if host { "False" } else { "True" }}]},
            }))
        };
        facts.pods = Ok(vec![pod("steered", false), pod("unsupported", true)]);
        facts.namespaces = Ok(vec![from(
            json!({"metadata": {"name": "shop", "uid": "ns"}}),
        )]);
        facts.now = Timestamp::from_second(900).unwrap_or_else(|e| panic!("{e}"));
        facts.warnings = Ok(vec![
            event("steered", "Pod", "web"),
            event("steered", "Pod", "web"),
            event("unsupported", "Pod", "db"),
            event("gone", "Pod", "old"),
            event("ns", "Namespace", "shop"),
        ]);
        let expected = [
            "namespace shop: the annotation x is unknown (10m ago)",
            "shop/web: the annotation x is unknown (10m ago)",
        ];
        assert_eq!(check(&facts).found, expected);
    }
}

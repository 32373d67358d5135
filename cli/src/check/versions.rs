// SPDX-License-Identifier: Apache-2.0
//! Which releases run: of control, and on the nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::{
    facts::{AdminAnswer, After},
    named,
    processes::{AGENT, PROXY, is_of_set, is_ready, of_control},
    report::Check,
    unanswered,
};

/// The label of a pod with its release.
const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// Releases, with the pods that run them.
pub type Versions = BTreeMap<String, Vec<String>>;

/// Whether what runs is what should run.
pub fn checks(facts: &After) -> Vec<Check> {
    vec![program(facts), control(facts), data_plane(facts)]
}

fn program(facts: &After) -> Check {
    let ours = env!("CARGO_PKG_VERSION");
    let found = (ours != facts.expected_version).then(|| format!("this program is {ours}"));
    Check::unless(
        found.into_iter().collect(),
        "cli is of the expected version",
        "use the `culvert` of that release",
    )
    .at_most_warning()
}

fn control(facts: &After) -> Check {
    let description = "control plane is of the expected version";
    match &facts.own {
        Ok(own) => judge(of_control_plane(own, &facts.admin), facts, description),
        Err(refusal) => unanswered(description, refusal).at_most_warning(),
    }
}

fn data_plane(facts: &After) -> Check {
    let description = "data plane is of the expected version";
    match &facts.own {
        Ok(own) => judge(of_data_plane(own), facts, description),
        Err(refusal) => unanswered(description, refusal).at_most_warning(),
    }
}

/// A release works with the one before it, so this is no failure.
fn judge(versions: Versions, facts: &After, description: &str) -> Check {
    let expected = &facts.expected_version;
    let others = versions
        .into_iter()
        .filter(|(version, _)| version != expected);
    let found = others.flat_map(|(version, pods)| {
        let pods = pods.into_iter();
        pods.map(move |pod| format!("{pod} is {version}"))
    });
    Check::unless(
        found.collect(),
        description,
        format!(
            "expected {expected}: `culvert upgrade | kubectl apply -f -`, control before the nodes; \
             a release works with the one before it"
        ),
    )
    .at_most_warning()
}

/// The releases of control's pods.
pub fn of_control_plane(own: &[Pod], admin: &BTreeMap<String, AdminAnswer>) -> Versions {
    let of = |pod: &Pod| {
        let told = admin.get(named(&pod.metadata));
        let told = told.and_then(|answer| answer.version.as_ref().ok());
        told.map(|version| version.trim().to_owned())
            .unwrap_or_else(|| label(pod))
    };
    group(of_control(own).map(|pod| (of(pod), pod)))
}

/// The releases of agents and proxies.
pub fn of_data_plane(own: &[Pod]) -> Versions {
    let of_set = |pod: &&Pod| [AGENT, PROXY].iter().any(|set| is_of_set(pod, set));
    let ready = own.iter().filter(of_set).filter(|pod| is_ready(pod));
    group(ready.map(|pod| (label(pod), pod)))
}

fn group<'a>(pods: impl Iterator<Item = (String, &'a Pod)>) -> Versions {
    let mut versions = BTreeMap::<_, Vec<_>>::new();
    for (version, pod) in pods {
        let spec = pod.spec.as_ref();
        let node = spec
            .and_then(|spec| spec.node_name.as_deref())
            .unwrap_or("no node");
        let pod = format!("pod {} on {node}", named(&pod.metadata));
        versions.entry(version).or_default().push(pod);
    }
    versions
}

fn label(pod: &Pod) -> String {
    let labels = pod.metadata.labels.as_ref();
    let version = labels.and_then(|labels| labels.get(VERSION_LABEL)).cloned();
    version.unwrap_or_else(|| format!("of unknown version (no label {VERSION_LABEL})"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::{
        report::Outcome,
        testing::{facts, from},
    };

    fn warned(facts: &After) -> Vec<String> {
        let checks = checks(facts);
        let bad = checks.iter().filter(|it| it.outcome == Outcome::Warning);
        bad.flat_map(|check| check.found.clone()).collect()
    }

    #[test]
    fn each_pod_of_another_release_is_named() {
        let mut facts = facts();
        let program = format!("this program is {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(warned(&facts), [program.as_str()]);
        facts.expected_version = "2".to_owned();
        let expected = [
            program.as_str(),
            "pod culvert-control-n1 on n1 is 1",
            "pod culvert-agent-n1 on n1 is 1",
            "pod culvert-proxy-n1 on n1 is 1",
        ];
        assert_eq!(warned(&facts), expected);
    }

    #[test]
    fn what_control_says_counts_before_its_label() {
        let mut facts = facts();
        for answer in facts.admin.values_mut() {
            answer.version = Ok("3\n".to_owned());
        }
        assert!(warned(&facts).contains(&"pod culvert-control-n1 on n1 is 3".to_owned()));
    }

    #[test]
    fn a_pod_without_a_release_and_one_that_is_not_ready() {
        let mut own = facts().own.unwrap_or_default();
        own[1].metadata.labels = None;
        own[2].status = from(json!({"phase": "Pending"}));
        let versions = of_data_plane(&own);
        let unknown = "of unknown version (no label app.kubernetes.io/version)";
        assert_eq!(versions.keys().collect::<Vec<_>>(), [unknown]);
    }
}

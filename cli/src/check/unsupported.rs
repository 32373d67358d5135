// SPDX-License-Identifier: Apache-2.0
//! Which pods can't be meshed, as far as their objects tell; the rest only their agents know, and say in events.

use std::collections::BTreeSet;

use culvert_api::unmeshable::{MIRROR, NEVER_MESH, SIDECARS, is_own_kernel};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::facts::After;

const NEVER_MESH_FLAG: &str = "--never-mesh";
const NEVER_MESH_VARIABLE: &str = "CULVERT_NEVER_MESH";

/// Why a pod can't be meshed, whatever it asks for.
pub fn why(pod: &Pod) -> Option<String> {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let annotations = pod.metadata.annotations.as_ref();
    if spec.host_network == Some(true) {
        return Some("it is in its host's network".to_owned());
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Some("it is one of Windows".to_owned());
    }
    if annotations.is_some_and(|annotations| annotations.contains_key(MIRROR)) {
        return Some("it is a static pod of its kubelet's own".to_owned());
    }
    own_kernel(spec).or_else(|| sidecar(spec))
}

fn own_kernel(spec: &PodSpec) -> Option<String> {
    let class = spec.runtime_class_name.as_deref();
    let class = class.filter(|class| is_own_kernel(class))?;
    Some(format!(
        "it runs in {class}, which has a network stack of its own"
    ))
}

fn sidecar(spec: &PodSpec) -> Option<String> {
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let mut names = all.map(|container| container.name.as_str());
    let name = names.find(|name| SIDECARS.contains(name))?;
    Some(format!("it has the sidecar {name} of another mesh"))
}

/// The namespaces whose pods are never meshed: Culvert's own, and what the agents are told.
pub fn never_mesh(facts: &After) -> BTreeSet<&str> {
    let agent = facts.agent.as_ref().ok();
    let spec = agent.and_then(|agent| agent.spec.template.spec.as_ref());
    let containers = spec.map(|spec| spec.containers.as_slice());
    let told = containers.into_iter().flatten().find_map(told);
    let names = told.unwrap_or(NEVER_MESH).split(',').map(str::trim);
    let names = names.filter(|name| !name.is_empty());
    names.chain([facts.namespace.as_str()]).collect()
}

/// The flag counts before the variable.
fn told(agent: &Container) -> Option<&str> {
    let mut args = agent.args.iter().flatten().map(String::as_str);
    let mut flag = None;
    while let Some(arg) = args.next() {
        match arg.strip_prefix(NEVER_MESH_FLAG) {
            Some("") => flag = args.next(),
            Some(value) => flag = value.strip_prefix('=').or(flag),
            None => {}
        }
    }
    let mut variables = agent.env.iter().flatten();
    let variable = variables.find(|variable| variable.name == NEVER_MESH_VARIABLE);
    flag.or_else(|| variable?.value.as_deref())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::check::testing::{facts, from};

    fn reason(spec: Value) -> Option<String> {
        why(&from(json!({"metadata": {}, "spec": spec})))
    }

    #[test]
    fn what_an_agent_refuses_is_told_by_the_object() {
        let plain = json!({"containers": [{"name": "web"}]});
        assert_eq!(reason(plain), None);
        let refused = [
            json!({"containers": [], "hostNetwork": true}),
            json!({"containers": [], "os": {"name": "windows"}}),
            json!({"containers": [], "runtimeClassName": "gvisor"}),
            json!({"containers": [], "runtimeClassName": "kata-qemu"}),
            json!({"containers": [{"name": "linkerd-proxy"}]}),
            json!({"containers": [], "initContainers": [{"name": "istio-proxy"}]}),
        ];
        for spec in refused {
            assert!(reason(spec.clone()).is_some(), "{spec}");
        }
        let mirror =
            json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {"containers": []}});
        assert!(why(&from(mirror)).is_some());
    }

    #[test]
    fn agents_say_which_namespaces_are_left_out() {
        let never = |container: Value| {
            let mut facts = facts();
            facts.agent = Ok(from(
                json!({"metadata": {}, "spec": {"selector": {}, "template": {
                    "spec": {"containers": [container]},
                }}}),
            ));
            never_mesh(&facts)
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let usual = ["culvert", "kube-system"];
        assert_eq!(never(json!({"name": "agent"})), usual);
        let told = json!({"name": "agent", "args": ["--kubernetes", "--never-mesh=a,b"]});
        assert_eq!(never(told), ["a", "b", "culvert"]);
        let told = json!({"name": "agent", "args": ["--never-mesh", "a"], "env": [{"name": NEVER_MESH_VARIABLE, "value": "z"}]});
        assert_eq!(never(told), ["a", "culvert"]);
        let told = json!({"name": "agent", "env": [{"name": NEVER_MESH_VARIABLE, "value": "z"}]});
        assert_eq!(never(told), ["culvert", "z"]);
    }
}

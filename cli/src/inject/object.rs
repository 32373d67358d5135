// SPDX-License-Identifier: Apache-2.0
//! Which objects can opt in, and why one can't.

use culvert_api::{
    annotations::INJECT,
    unmeshable::{NEVER_MESH, SIDECARS, is_own_kernel},
};

use super::tree::{self, Node, Value};

/// An object of a document.
#[derive(Debug)]
pub struct Object<'a> {
    /// What it is.
    pub node: &'a Node,
    /// Where the metadata is that opts in; none if it can't.
    pub metadata: Option<&'static [&'static str]>,
}

const OWN: &[&str] = &["metadata"];
const TEMPLATE: &[&str] = &["spec", "template", "metadata"];
const JOB_TEMPLATE: &[&str] = &["spec", "jobTemplate", "spec", "template", "metadata"];

/// The objects of a document: itself, or what a list holds.
pub fn objects(document: &Node) -> Vec<Object<'_>> {
    let kind = word(document, &["kind"]);
    if let (true, Some(Value::Seq(items))) = (
        kind.ends_with("List"),
        tree::field(document, "items").map(|items| &items.value),
    ) {
        return items.iter().flat_map(objects).collect();
    }
    vec![Object {
        node: document,
        metadata: metadata(kind),
    }]
}

fn metadata(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "Namespace" | "Pod" => Some(OWN),
        "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicaSet"
        | "ReplicationController"
        | "Job" => Some(TEMPLATE),
        "CronJob" => Some(JOB_TEMPLATE),
        _ => None,
    }
}

fn word<'a>(node: &'a Node, path: &[&str]) -> &'a str {
    tree::at(node, path)
        .and_then(tree::text)
        .unwrap_or_default()
}

// === impl Object ===

impl Object<'_> {
    /// As `kubectl` says it.
    pub fn title(&self) -> String {
        let kind = word(self.node, &["kind"]).to_lowercase();
        let name = match word(self.node, &["metadata", "name"]) {
            "" => word(self.node, &["metadata", "generateName"]),
            name => name,
        };
        match kind.as_str() {
            "" => "document".to_owned(),
            _ => format!("{kind} {name:?}"),
        }
    }

    /// The annotations that count for its pods.
    pub fn annotations(&self) -> Option<&Node> {
        tree::at(self.node, self.metadata?)
            .and_then(|metadata| tree::field(metadata, "annotations"))
    }

    /// An annotation's value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations()
            .and_then(|all| tree::field(all, key))
            .and_then(tree::text)
    }

    /// Whether it is out by name.
    pub fn is_disabled(&self) -> bool {
        INJECT.iter().find_map(|name| self.annotation(name)) == Some("disabled")
    }

    /// Why it is left as it is, if it is; an empty reason where nobody would expect anything else. `own` is Culvert's
    /// namespace.
    pub fn refusal(&self, own: &str) -> Option<String> {
        let Some(metadata) = self.metadata else {
            return Some(String::new());
        };
        if word(self.node, &["kind"]) == "Namespace" {
            let never = [NEVER_MESH, own].contains(&word(self.node, &["metadata", "name"]));
            return never.then(|| "it is never meshed".to_owned());
        }
        if self.is_disabled() {
            return Some("it is annotated as disabled".to_owned());
        }
        let spec = spec(self.node, metadata);
        if spec.is_some_and(|spec| is_true(spec, "hostNetwork")) {
            return Some("it uses the host's network".to_owned());
        }
        let class = spec.map(|spec| word(spec, &["runtimeClassName"]));
        if let Some(class) = class.filter(|class| is_own_kernel(class)) {
            return Some(format!(
                "it runs in {class}, which has a network stack of its own"
            ));
        }
        let sidecar = spec
            .into_iter()
            .flat_map(containers)
            .find(|name| SIDECARS.contains(name));
        sidecar.map(|name| format!("it has a proxy already, {name}"))
    }
}

fn spec<'a>(node: &'a Node, metadata: &[&str]) -> Option<&'a Node> {
    let (_, above) = metadata.split_last()?;
    tree::field(tree::at(node, above)?, "spec")
}

/// Booleans are the only scalars that are no text here.
fn is_true(spec: &Node, key: &str) -> bool {
    tree::field(spec, key).is_some_and(|node| matches!(node.value, Value::Bool(true)))
}

fn containers(spec: &Node) -> impl Iterator<Item = &str> {
    let lists = ["containers", "initContainers"].into_iter();
    let lists = lists.filter_map(|key| tree::field(spec, key));
    let containers = lists.flat_map(|list| match &list.value {
        Value::Seq(items) => items.as_slice(),
        _ => &[],
    });
    containers.map(|container| word(container, &["name"]))
}

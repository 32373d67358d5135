// SPDX-License-Identifier: Apache-2.0
//! What Culvert wrote on objects of others, and takes back when it leaves: pods' conditions and nodes' taints. A node's annotation is
//! taken back by its agent, after all else; where it is still there, so is the rest.

use culvert_api::kubernetes::{MESHED_CONDITION, NOT_READY_TAINT};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    install::{Error, Result},
    left::{self, Left},
};

/// How many pods are asked for, and how many are patched, at once.
const PAGE: u32 = 500;
const AT_ONCE: usize = 16;
/// How often a node that others write to is tried.
const TRIES: u32 = 10;

/// What was taken back, and what only somebody on the node can.
#[derive(Debug)]
pub struct Traces {
    /// How many pods had the condition.
    pub pods: usize,
    /// How many nodes had the taint.
    pub nodes: usize,
    /// The nodes whose agents did not take back their annotation, which they do last.
    pub left: Vec<Left>,
}

/// Takes back what is on pods and nodes, once the agents are gone.
pub async fn remove(client: &Client) -> Result<Traces> {
    let pods = pods(client).await?;
    let (nodes, left) = nodes(client).await?;
    Ok(Traces { pods, nodes, left })
}

async fn pods(client: &Client) -> Result<usize> {
    let api: Api<Pod> = Api::all(client.clone());
    let mut page = ListParams::default().limit(PAGE);
    let mut count = 0;
    loop {
        let list = api.list(&page).await;
        let list = list.map_err(|error| Error::cluster("list pods", &error))?;
        let marked: Vec<_> = list.items.iter().filter(|pod| is_marked(pod)).collect();
        count += marked.len();
        let patches = stream::iter(marked).map(Ok);
        patches
            .try_for_each_concurrent(AT_ONCE, |pod| unmark(client, pod))
            .await?;
        match list.metadata.continue_.filter(|more| !more.is_empty()) {
            Some(more) => page = ListParams::default().limit(PAGE).continue_token(&more),
            None => return Ok(count),
        }
    }
}

/// Has the condition, and does not depend on it.
fn is_marked(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_ref());
    let has = conditions.is_some_and(|all| all.iter().any(|one| one.type_ == MESHED_CONDITION));
    let wants =
        gates.is_some_and(|all| all.iter().any(|one| one.condition_type == MESHED_CONDITION));
    has && !wants
}

async fn unmark(client: &Client, pod: &Pod) -> Result<()> {
    let meta = &pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let name = meta.name.as_deref().unwrap_or_default();
    let patch = json!({"status": {"conditions": [{"type": MESHED_CONDITION, "$patch": "delete"}]}});
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let patched = api
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    gone_is_fine(
        patched,
        &format!("take the condition off pod {namespace}/{name}"),
    )
}

async fn nodes(client: &Client) -> Result<(usize, Vec<Left>)> {
    let api: Api<Node> = Api::all(client.clone());
    let list = api.list(&ListParams::default()).await;
    let list = list.map_err(|error| Error::cluster("list nodes", &error))?;
    let mut count = 0;
    for node in &list {
        count += usize::from(untaint(&api, node).await?);
    }
    Ok((count, list.iter().filter_map(left::on).collect()))
}

/// Whether there was a taint to take off. Whoever writes to the node in between, as its kubelet does all the time, costs another look.
async fn untaint(api: &Api<Node>, node: &Node) -> Result<bool> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let doing = format!("take the taint off node {name}");
    let mut patch = untainted(node);
    let mut tries = TRIES;
    while let Some(known) = &patch {
        let merge = Patch::Merge(known);
        tries -= 1;
        match api.patch(name, &PatchParams::default(), &merge).await {
            Err(kube::Error::Api(status)) if status.code == 409 && tries > 0 => {
                let node = api.get_opt(name).await;
                let node = node.map_err(|error| Error::cluster(&*doing, &error))?;
                patch = node.as_ref().and_then(untainted);
            }
            patched => return gone_is_fine(patched, &doing).map(|()| true),
        }
    }
    Ok(false)
}

/// With the version it was read at, since a list of taints is replaced as a whole.
fn untainted(node: &Node) -> Option<Value> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let kept: Vec<_> = taints
        .iter()
        .filter(|taint| taint.key != NOT_READY_TAINT)
        .collect();
    let version = &node.metadata.resource_version;
    (kept.len() < taints.len())
        .then(|| json!({"metadata": {"resourceVersion": version}, "spec": {"taints": kept}}))
}

fn gone_is_fine<T>(patched: kube::Result<T>, doing: &str) -> Result<()> {
    match patched {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Error::cluster(doing, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn a_node_loses_our_taint_and_keeps_the_others() {
        let other = json!({"key": "other", "effect": "NoSchedule"});
        let ours = json!({"key": NOT_READY_TAINT, "effect": "NoExecute"});
        let with = |taints: Value| {
            node(
                json!({"metadata": {"name": "a", "resourceVersion": "7"}, "spec": {"taints": taints}}),
            )
        };
        let expected = json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": [other]}});
        assert_eq!(untainted(&with(json!([other, ours]))), Some(expected));
        assert_eq!(untainted(&with(json!([other]))), None);
    }

    #[test]
    fn a_pod_that_waits_for_the_condition_keeps_it() {
        let pod = |gates: Value| -> Pod {
            let status = json!({"conditions": [{"type": MESHED_CONDITION, "status": "False"}]});
            let pod =
                json!({"spec": {"containers": [], "readinessGates": gates}, "status": status});
            serde_json::from_value(pod).unwrap_or_else(|e| panic!("{e}"))
        };
        assert!(is_marked(&pod(json!([]))));
        assert!(!is_marked(&pod(
            json!([{"conditionType": MESHED_CONDITION}])
        )));
    }
}

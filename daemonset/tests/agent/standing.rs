// SPDX-License-Identifier: Apache-2.0
//! What the agent says of its node, and what it makes of a cluster that it knows in part.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    time::{Duration, Instant},
};

use culvert_api::cni::{Command, code};
use serde_json::json;

use crate::{
    cluster::{Cluster, NAMESPACES, NODES, PODS},
    node::Node,
    proxy::Proxy,
    talk::*,
};

const PRIMARY: &str = r#"{"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;

/// A node of a cluster, with a network, and no agent yet.
async fn node(label: &str) -> (Node, Cluster) {
    let node = Node::new(label);
    let cluster = Cluster::start(&node).await;
    fs::create_dir(node.path("net")).unwrap_or_else(|e| panic!("{e}"));
    for (file, text) in [("net/10-pods.conflist", PRIMARY), ("plugin", "program")] {
        fs::write(node.path(file), text).unwrap_or_else(|e| panic!("{e}"));
    }
    (node, cluster)
}

fn start(node: &mut Node, flags: &[&str]) {
    node.launch_in_cluster(flags);
    node.until_ready();
}

fn until_said(node: &Node, cluster: &Cluster, what: &str, is_said: bool) {
    let says = || {
        let said = cluster.annotation()?;
        (said.contains(what) == is_said).then_some(())
    };
    node.until(&format!("{what:?} is said: {is_said}"), says);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_namespace_the_agent_has_not_heard_of_does_not_start_unmeshed() {
    let (mut node, cluster) = node("unheard").await;
    // Opted in by its namespace, which another watch will tell of.
    cluster.remove(NAMESPACES, "shop");
    cluster.put(
        PODS,
        "web",
        json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": node.uid()},
            "spec": {"nodeName": node.name, "containers": [{"name": "c"}]},
        }),
    );
    start(&mut node, &[]);
    until_said(&node, &cluster, r#""waitingFor":["proxy"]"#, true);
    let add = node.ask(Command::Add(node.attachment()));
    assert_eq!(failure(add), code::TRY_AGAIN);
    let opt_in = fs::read_to_string(node.path("state/opt-in.json")).unwrap_or_default();
    assert!(!opt_in.contains(&node.uid()), "{opt_in}");
    // The network is fine all the same: the kubelet would start no proxy otherwise.
    assert_eq!(node.ask(Command::Status), UNSTEERED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_gone_is_missed_until_it_is_back() {
    let (mut node, cluster) = node("missed").await;
    start(&mut node, &[]);
    until_said(&node, &cluster, r#""problems":[]"#, true);
    let kubelet = node.cgroup.join("kubelet");
    fs::remove_dir(&kubelet).unwrap_or_else(|e| panic!("{e}"));
    until_said(&node, &cluster, "is not there", true);
    fs::create_dir(&kubelet).unwrap_or_else(|e| panic!("{e}"));
    until_said(&node, &cluster, r#""problems":[]"#, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taint_that_stays_keeps_nobody_from_hearing_how_the_node_is() {
    let (mut node, cluster) = node("taint").await;
    let taints = json!([{"key": "node.culvert.io/agent-not-ready", "effect": "NoSchedule"}]);
    cluster.put(
        NODES,
        &node.name,
        json!({
            "metadata": {"name": node.name, "labels": {"pool": "a"}, "annotations": {}},
            "spec": {"taints": taints},
        }),
    );
    start(&mut node, &[]);
    let _proxy = Proxy::snapshot(&node).await;
    let tried = |times: u32| {
        node.until("the taint is tried", || {
            (cluster.untaints() >= times).then_some(())
        });
    };
    tried(1);
    let first = Instant::now();
    tried(3);
    assert!(first.elapsed() > Duration::from_secs(8), "{first:?}");
    until_said(&node, &cluster, r#""waitingFor":[]"#, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_another_user_gets_what_the_one_before_had() {
    let (mut node, _cluster) = node("user").await;
    let proxy = node.path("proxy");
    fs::create_dir(&proxy)
        .and_then(|()| fs::write(proxy.join("state.json"), "{}"))
        .unwrap_or_else(|e| panic!("{e}"));
    for path in [proxy.join("state.json"), proxy.clone()] {
        chown(path, Some(4242), Some(4242)).unwrap_or_else(|e| panic!("{e}"));
    }
    start(&mut node, &["--proxy-uid", "2102"]);
    for path in [proxy.join("state.json"), proxy] {
        let of = path.metadata().map(|of| (of.uid(), of.gid()));
        assert_eq!(of.ok(), Some((2102, 2102)), "{}", path.display());
    }
}

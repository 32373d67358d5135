// SPDX-License-Identifier: Apache-2.0
//! A cluster of one node on which all is well, for tests to break.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::version::Info,
    jiff::Timestamp,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    facts::{AdminAnswer, After, Leases, Server},
    processes::{AGENT, CONTROL, PROXY},
};

/// An object as the API server writes it.
pub fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}"))
}

/// A node whose agent says that all is well.
pub fn node(name: &str) -> Node {
    from(json!({
        "metadata": {"name": name, "annotations": {
            "culvert.io/agent": r#"{"version":"1","proxies":1,"cni":{"chained":true}}"#,
        }},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {
                "kernelVersion": "6.1.0", "operatingSystem": "linux", "architecture": "amd64",
                "containerRuntimeVersion": "containerd://1.7.1", "osImage": "", "bootID": "",
                "machineID": "", "systemUUID": "", "kubeletVersion": "", "kubeProxyVersion": "",
            },
        },
    }))
}

/// A pod of Culvert's own.
pub fn own_pod(kind: &str, owner: &str, node: &str, status: Value) -> Pod {
    from(json!({
        "metadata": {
            "name": format!("{owner}-{node}"),
            "labels": {"app.kubernetes.io/version": "1"},
            "ownerReferences": [{"kind": kind, "name": owner, "apiVersion": "apps/v1", "uid": "o"}],
        },
        "spec": {"nodeName": node, "containers": []},
        "status": status,
    }))
}

/// One node, all ready, no pods, and no certificates.
pub fn facts() -> After {
    let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    let set = json!({"metadata": {}, "spec": {"selector": {}, "template": {}}});
    let admin = AdminAnswer {
        ready: Ok("ready\n".to_owned()),
        version: Ok("1\n".to_owned()),
    };
    After {
        namespace: "culvert".to_owned(),
        expected_version: "1".to_owned(),
        now: Timestamp::UNIX_EPOCH,
        server: Server {
            version: Info::default(),
            clock: None,
        },
        nodes: Ok(vec![node("n1")]),
        leases: Ok(Leases {
            at: Timestamp::UNIX_EPOCH,
            leases: vec![],
        }),
        namespaces: Ok(vec![]),
        pods: Ok(vec![]),
        own: Ok(vec![
            own_pod("ReplicaSet", CONTROL, "n1", ready.clone()),
            own_pod("DaemonSet", AGENT, "n1", ready.clone()),
            own_pod("DaemonSet", PROXY, "n1", ready),
        ]),
        events: Ok(vec![]),
        own_events: Ok(vec![]),
        warnings: Ok(vec![]),
        control: Ok(from(set.clone())),
        service: Ok(from(json!({}))),
        agent: Ok(from(set.clone())),
        proxy: Ok(from(set)),
        anchors: Ok(from(json!({}))),
        issuer: Ok(from(json!({}))),
        proxies: BTreeMap::new(),
        admin: [("culvert-control-n1".to_owned(), admin)].into(),
    }
}

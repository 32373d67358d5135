// SPDX-License-Identifier: Apache-2.0
//! A gRPC and HTTP/1.1 server, `tests/programs/calls_server.py`, as the three pods of a deployment
//! behind a service, and their client.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{CLIENT, python, source};
use crate::{
    manifests::{NAMESPACE, Pod, service},
    sandbox::{Plan, Sandbox},
};

/// The deployment, its service and its ServiceAccount.
pub const CALLS: &str = "calls";
/// How many there are.
pub const REPLICAS: usize = 3;
/// Of gRPC.
pub const GRPC: u16 = 9700;
/// Of HTTP/1.1.
pub const HTTP: u16 = 9701;

/// What each replica answered.
pub type Shares = BTreeMap<String, u32>;

/// The client on the first node and the replicas on the second, strict.
pub fn plan(name: &str) -> anyhow::Result<Plan> {
    let account = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": CALLS, "namespace": NAMESPACE},
    });
    Plan::new(name)?
        .pod(&Pod::new(CLIENT, "n1", &["sleep", "infinity"]).strict())?
        .object(&account)?
        .object(&service(CALLS, ("app", CALLS), &[GRPC, HTTP]))?
        .object(&deployment("first"))
}

/// The deployment in a version. Another version replaces one pod after the other.
pub fn deployment(version: &str) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": CALLS, "namespace": NAMESPACE},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": CALLS}},
            "template": {
                "metadata": {
                    "labels": {"app": CALLS},
                    "annotations": {
                        "culvert.io/inject": "enabled",
                        "culvert.io/default-inbound-policy": "all-authenticated",
                    },
                },
                "spec": {
                    "nodeName": "n2",
                    "serviceAccountName": CALLS,
                    "containers": [{
                        "name": "app",
                        "image": "none",
                        "command": [python(), source("calls_server.py")],
                        "env": [{"name": "VERSION", "value": version}],
                        // Each is there for a while before the next one comes.
                        "readinessProbe": {
                            "tcpSocket": {"port": GRPC},
                            "periodSeconds": 1,
                            "initialDelaySeconds": 1,
                        },
                    }],
                },
            },
        },
    })
}

/// The pods that are ready.
pub fn ready(sandbox: &Sandbox) -> anyhow::Result<BTreeSet<String>> {
    let status = sandbox.status()?;
    let pods = status["pods"].as_array().context("no pods")?;
    let ready = pods.iter().filter(|pod| pod["ready"] == true);
    let names = ready.filter_map(|pod| pod["name"].as_str());
    let names = names.filter(|name| name.starts_with(&format!("{CALLS}-")));
    Ok(names.map(str::to_owned).collect())
}

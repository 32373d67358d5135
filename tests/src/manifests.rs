// SPDX-License-Identifier: Apache-2.0
//! The manifests of the tests' pods and services, as JSON, which is YAML.

use std::path::Path;

use serde_json::{Value, json};

/// The namespace of the tests' pods.
pub const NAMESPACE: &str = "default";

/// A pod of one container.
#[derive(Clone, Debug)]
pub struct Pod {
    name: String,
    object: Value,
}

// === impl Pod ===

impl Pod {
    /// A pod on a node that runs a command as ServiceAccount `<name>`. It is not meshed.
    pub fn new(name: &str, node: &str, command: &[&str]) -> Self {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}, "annotations": {}},
            "spec": {
                "nodeName": node,
                "serviceAccountName": name,
                "containers": [{"name": "app", "image": "none", "command": command}],
            },
        });
        let name = name.to_owned();
        Self { name, object }
    }

    /// A pod that runs `culvert-testapp serve` with these `PORT=BEHAVIOUR`, or `[::]:PORT=BEHAVIOUR`
    /// for both families, ready when the first port answers a TCP probe.
    pub fn serving(name: &str, node: &str, testapp: &Path, listen: &[&str]) -> Self {
        let testapp = testapp.display().to_string();
        let mut command = vec![testapp.as_str(), "serve", "--log"];
        for listen in listen {
            command.extend(["--listen", listen]);
        }
        let pod = Self::new(name, node, &command);
        let first = listen.first().and_then(|listen| listen.split('=').next());
        let port = first.and_then(|at| at.trim_start_matches("[::]:").parse().ok());
        match port {
            Some(port) => pod.tcp_probe(port),
            None => pod,
        }
    }

    /// Opted in.
    pub fn meshed(self) -> Self {
        self.annotation("culvert.io/inject", "enabled")
    }

    /// Opted in, and lets in only who proves an identity.
    pub fn strict(self) -> Self {
        self.meshed()
            .annotation("culvert.io/default-inbound-policy", "all-authenticated")
    }

    /// With an annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.object["metadata"]["annotations"][name] = value.into();
        self
    }

    /// Without an annotation.
    pub fn without_annotation(mut self, name: &str) -> Self {
        if let Some(all) = self.object["metadata"]["annotations"].as_object_mut() {
            all.remove(name);
        }
        self
    }

    /// With a label, beside `app`.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.object["metadata"]["labels"][name] = value.into();
        self
    }

    /// Ready when a TCP connection to the port opens.
    pub fn tcp_probe(mut self, port: u16) -> Self {
        let probe = json!({"tcpSocket": {"port": port}, "periodSeconds": 1});
        self.object["spec"]["containers"][0]["readinessProbe"] = probe;
        self
    }

    /// Restarted at the first second in which no TCP connection to the port opens.
    pub fn liveness_probe(mut self, port: u16) -> Self {
        let probe = json!({"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 1});
        self.object["spec"]["containers"][0]["livenessProbe"] = probe;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The pod and its ServiceAccount.
    pub fn objects(&self) -> Vec<Value> {
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
        });
        vec![account, self.object.clone()]
    }
}

/// A service over the pods with a label, which maps each port to itself.
pub fn service(name: &str, label: (&str, &str), ports: &[u16]) -> Value {
    let ports = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port}));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {label.0: label.1}, "ports": ports.collect::<Vec<_>>()},
    })
}

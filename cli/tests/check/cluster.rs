// SPDX-License-Identifier: Apache-2.0
//! A cluster of two nodes in which all is well.

use serde_json::{Value, json};

use crate::api_server::{Answer, ApiServer, Identity, Result};

const OWN: &str = "/api/v1/namespaces/culvert";
const APPS: &str = "/apis/apps/v1/namespaces/culvert";

/// Its API server.
pub fn installed() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.lists("/api/v1/nodes", vec![node("n1"), node("n2")]);
    server.lists(
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
        vec![],
    );
    let namespaces = vec![
        namespace("culvert", "disabled"),
        namespace("shop", "enabled"),
    ];
    server.lists("/api/v1/namespaces", namespaces);
    server.lists("/api/v1/pods", vec![pod("web", "True"), pod("api", "True")]);
    server.lists("/api/v1/events", vec![]);
    server.lists(&format!("{OWN}/events"), vec![]);
    server.lists(&format!("{OWN}/pods"), own_pods("True"));
    let set = json!({"metadata": {"name": "x"}, "spec": {"selector": {}, "template": {}}});
    server.says(&format!("{APPS}/deployments/culvert-control"), set.clone());
    server.says(&format!("{APPS}/daemonsets/culvert-agent"), set.clone());
    server.says(&format!("{APPS}/daemonsets/culvert-proxy"), set);
    server.says(
        &format!("{OWN}/services/culvert-control"),
        json!({"metadata": {}}),
    );
    identity(&server)?;
    for node in ["n1", "n2"] {
        let metrics = format!("{OWN}/pods/culvert-proxy-{node}:4191/proxy/metrics");
        server.answers(&metrics, Answer::Text(200, "other 1\n"));
    }
    let control = format!("{OWN}/pods/culvert-control-n1:9990/proxy");
    server.answers(&format!("{control}/ready"), Answer::Text(200, "ready\n"));
    let version = concat!(env!("CARGO_PKG_VERSION"), "\n");
    server.answers(&format!("{control}/version"), Answer::Text(200, version));
    Ok(server)
}

fn identity(server: &ApiServer) -> Result<()> {
    let identity = Identity::create()?;
    let bundle = json!({"metadata": {}, "data": {"ca-bundle.crt": identity.anchor}});
    server.says(
        &format!("{OWN}/configmaps/culvert-identity-trust-roots"),
        bundle,
    );
    let base64 = |text: String| serde_json::to_value(k8s_openapi::ByteString(text.into_bytes()));
    let secret = json!({"metadata": {}, "type": "kubernetes.io/tls", "data": {
        "tls.crt": base64(identity.issuer)?,
        "tls.key": base64(identity.key)?,
        "ca.crt": base64(identity.anchor)?,
    }});
    server.says(&format!("{OWN}/secrets/culvert-identity-issuer"), secret);
    Ok(())
}

/// A node whose agent says that all is well.
pub fn node(name: &str) -> Value {
    let told = r#"{"version":"0.1.0","proxies":1,"cni":{"chained":true}}"#;
    json!({
        "metadata": {"name": name, "annotations": {"culvert.io/agent": told}},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {
                "kernelVersion": "6.1.0-28-amd64", "operatingSystem": "linux", "architecture": "amd64",
                "containerRuntimeVersion": "containerd://1.7.1", "osImage": "", "bootID": "",
                "machineID": "", "systemUUID": "", "kubeletVersion": "", "kubeProxyVersion": "",
            },
        },
    })
}

fn namespace(name: &str, inject: &str) -> Value {
    json!({"metadata": {"name": name, "annotations": {"culvert.io/inject": inject}}})
}

/// A pod of namespace shop, which is opted in.
pub fn pod(name: &str, meshed: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": {"nodeName": "n1", "containers": []},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "culvert.io/Meshed", "status": meshed, "reason": "Steered"}],
        },
    })
}

/// Control on the first node, an agent and a proxy on both; the last one as ready as is said.
pub fn own_pods(last: &str) -> Vec<Value> {
    vec![
        own_pod("ReplicaSet", "culvert-control", "n1", "True"),
        own_pod("DaemonSet", "culvert-agent", "n1", "True"),
        own_pod("DaemonSet", "culvert-agent", "n2", "True"),
        own_pod("DaemonSet", "culvert-proxy", "n1", "True"),
        own_pod("DaemonSet", "culvert-proxy", "n2", last),
    ]
}

fn own_pod(kind: &str, owner: &str, node: &str, ready: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("{owner}-{node}"),
            "labels": {"app.kubernetes.io/version": env!("CARGO_PKG_VERSION")},
            "ownerReferences": [{"kind": kind, "name": owner, "apiVersion": "apps/v1", "uid": "o"}],
        },
        "spec": {"nodeName": node, "containers": []},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{
                "name": "proxy", "ready": ready == "True", "restartCount": 3, "image": "", "imageID": "",
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "message": "no socket of an agent"}},
            }],
        },
    })
}

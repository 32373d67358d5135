// SPDX-License-Identifier: Apache-2.0
//! An API server of a large cluster, whose objects are as long as real ones. It takes Leases, and
//! forgets them.

use std::{io::Write as _, sync::Arc};

use anyhow::{Context, Result};
use culvert_manifests::NamespacedName;
use kube::Client;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinSet,
};

pub(crate) const PODS: usize = 5_000;
pub(crate) const SERVICES: usize = 500;
const NAMESPACES: usize = 200;
const NODES: usize = 100;
const PAGE: usize = 500;

pub(crate) struct Cluster {
    address: String,
    lists: Arc<Lists>,
    changes: broadcast::Sender<String>,
    _tasks: JoinSet<()>,
}

/// The objects of each kind, as JSON.
struct Lists {
    pods: Vec<String>,
    others: [(&'static str, Vec<String>); 5],
}

// === impl Cluster ===

impl Cluster {
    pub(crate) async fn start(pods: usize) -> Result<Self> {
        let lists = Arc::new(Lists::new(pods));
        let (changes, _) = broadcast::channel(16);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let mut tasks = JoinSet::new();
        let (served, sender) = (Arc::clone(&lists), changes.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let served = serve(stream, Arc::clone(&served), sender.subscribe());
                connections.spawn(async move { drop(served.await) });
            }
        });
        Ok(Self {
            address,
            lists,
            changes,
            _tasks: tasks,
        })
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        let file = self.kubeconfig()?;
        Ok(culvert_kubernetes::client(Some(file.path())).await?)
    }

    /// As a user outside the cluster has it.
    pub(crate) fn kubeconfig(&self) -> Result<NamedTempFile> {
        let mut file = NamedTempFile::new()?;
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        });
        write!(file, "{kubeconfig}")?;
        Ok(file)
    }

    /// Changes a pod.
    pub(crate) fn label(&self, nth: usize, label: &str) -> Result<()> {
        let mut pod = pod(nth);
        pod["metadata"]["labels"]["nth"] = json!(label);
        pod["metadata"]["resourceVersion"] = json!("1000001");
        let event = json!({"type": "MODIFIED", "object": pod});
        self.changes
            .send(format!("{event}\n"))
            .context("nobody watches")?;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lists.pods.iter().map(String::len).sum()
    }
}

// === impl Lists ===

impl Lists {
    fn new(pods: usize) -> Self {
        let all = |count: usize, one: fn(usize) -> Value| {
            (0..count).map(|nth| one(nth).to_string()).collect()
        };
        Self {
            pods: all(pods, pod),
            others: [
                ("/api/v1/namespaces?", all(NAMESPACES, namespace)),
                ("/api/v1/nodes?", all(NODES, node)),
                ("/api/v1/services?", all(SERVICES, service)),
                ("/api/v1/serviceaccounts?", all(SERVICES, account)),
                (
                    "/apis/discovery.k8s.io/v1/endpointslices?",
                    all(SERVICES, slice),
                ),
            ],
        }
    }

    fn list(&self, target: &str) -> String {
        let kind = self
            .others
            .iter()
            .find(|(path, _)| target.starts_with(path));
        let items: &[String] = match kind {
            Some((_, items)) => items,
            None if target.starts_with("/api/v1/pods?") => &self.pods,
            None => &[],
        };
        let asked = target.split_once("continue=").map(|(_, rest)| rest);
        let from: usize = asked.and_then(|it| it.parse().ok()).unwrap_or(0);
        let end = (from + PAGE).min(items.len());
        let next = (end < items.len()).then(|| end.to_string());
        let metadata = json!({"resourceVersion": "1000000", "continue": next});
        let items = items.get(from..end).unwrap_or_default();
        format!(r#"{{"metadata":{metadata},"items":[{}]}}"#, items.join(","))
    }
}

async fn serve(
    stream: TcpStream,
    lists: Arc<Lists>,
    mut changes: broadcast::Receiver<String>,
) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some((target, sent)) = request(&mut stream).await? else {
            return Ok(());
        };
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json";
        if !target.contains("watch=true") {
            let body = if sent.is_empty() {
                lists.list(&target)
            } else {
                sent
            };
            let head = format!("{head}\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
            continue;
        }
        let head = format!("{head}\r\nTransfer-Encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let pods = target.starts_with("/api/v1/pods?");
        loop {
            let event = changes.recv().await?;
            if pods {
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                stream.write_all(chunk.as_bytes()).await?;
            }
        }
    }
}

/// What is asked for, and what is sent.
async fn request(stream: &mut BufReader<TcpStream>) -> Result<Option<(String, String)>> {
    let (mut target, mut line, mut length) = (String::new(), String::new(), 0);
    while stream.read_line(&mut line).await? > 2 {
        if target.is_empty() {
            target = line.split(' ').nth(1).context("no target")?.to_owned();
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
        line.clear();
    }
    let mut sent = vec![0; length];
    stream.read_exact(&mut sent).await?;
    Ok((!target.is_empty()).then_some((target, String::from_utf8(sent)?)))
}

/// The namespace and the name of a pod.
pub(crate) fn key(nth: usize) -> NamespacedName {
    (
        format!("team-{}", nth % NAMESPACES),
        format!("web-{}-6c9f8d7b5c-{nth:05}", nth % SERVICES),
    )
}

fn metadata(namespace: Option<usize>, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "uid": format!("7e3c2a54-9d1b-4b6e-8f55-{name:>12.12}"),
        "resourceVersion": "999999",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}".repeat(500)},
        "managedFields": [{
            "manager": "kubectl", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "time": "2026-01-01T00:00:00Z",
            "fieldsV1": {"f:metadata": {"f:labels": {"f:a": {}, "f:b": {}, "f:c": {}}}, "f:spec": {}},
        }],
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(format!("team-{}", namespace % NAMESPACES));
    }
    metadata
}

fn namespace(nth: usize) -> Value {
    let mut metadata = metadata(None, &format!("team-{nth}"));
    metadata["annotations"]["linkerd.io/inject"] = json!("enabled");
    json!({"metadata": metadata, "status": {"phase": "Active"}})
}

fn node(nth: usize) -> Value {
    let images = (0..50).map(|image| {
        json!({"names": [format!("registry.example/team/image@sha256:{image:064}")], "sizeBytes": 1})
    });
    json!({
        "metadata": metadata(None, &format!("n{nth}")),
        "spec": {"podCIDR": "10.0.0.0/24"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "192.168.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "images": images.collect::<Vec<_>>(),
        },
    })
}

fn service(nth: usize) -> Value {
    json!({
        "metadata": metadata(Some(nth), &format!("web-{nth}")),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": format!("10.96.{}.{}", nth / 250, nth % 250),
            "selector": {"app": format!("web-{nth}")},
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http"},
                {"name": "grpc", "port": 81, "targetPort": 8081},
            ],
        },
    })
}

fn account(nth: usize) -> Value {
    let mut account = json!({"metadata": metadata(Some(nth), &format!("web-{nth}"))});
    account["secrets"] = json!([{"name": format!("web-{nth}-token")}]);
    account
}

fn slice(nth: usize) -> Value {
    let endpoints = (0..PODS / SERVICES).map(|pod| {
        let (namespace, name) = key(pod * SERVICES + nth);
        json!({
            "addresses": [format!("10.{}.{}.{}", 1 + pod, nth / 250, nth % 250)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("n{}", pod % NODES),
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": name, "resourceVersion": "9"},
        })
    });
    json!({
        "metadata": metadata(Some(nth), &format!("web-{nth}-abcde")),
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080}, {"name": "grpc", "port": 8081}],
    })
}

fn pod(nth: usize) -> Value {
    let (namespace, name) = key(nth);
    let mut metadata = metadata(Some(nth), &name);
    metadata["namespace"] = json!(namespace);
    metadata["labels"]["app"] = json!(format!("web-{}", nth % SERVICES));
    metadata["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("web-{}-6c9f8d7b5c", nth % SERVICES),
        "uid": "7e3c2a54-9d1b-4b6e-8f55-1d2c3b4a5968", "controller": true, "blockOwnerDeletion": true,
    }]);
    let env = (0..15).map(|nth| json!({"name": format!("SETTING_{nth}"), "value": "x".repeat(40)}));
    let container = json!({
        "name": "web", "image": "registry.example/team/web:1.2.3", "imagePullPolicy": "IfNotPresent",
        "env": env.collect::<Vec<_>>(),
        "ports": [{"name": "http", "containerPort": 8080}, {"name": "grpc", "containerPort": 8081}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 10},
        "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}, "periodSeconds": 10},
        "securityContext": {"runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": true}],
    });
    let condition = |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    json!({
        "metadata": metadata,
        "spec": {
            "nodeName": format!("n{}", nth % NODES),
            "serviceAccountName": format!("web-{}", nth % SERVICES),
            "containers": [container, {"name": "log", "image": "registry.example/log:1"}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}],
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
            "securityContext": {"fsGroup": 1000}, "restartPolicy": "Always", "schedulerName": "default",
        },
        "status": {
            "phase": "Running", "hostIP": "192.168.0.1", "startTime": "2026-01-01T00:00:00Z",
            "podIP": format!("10.{}.{}.{}", 1 + nth / SERVICES, nth % SERVICES / 250, nth % 250),
            "podIPs": [{"ip": format!("10.{}.{}.{}", 1 + nth / SERVICES, nth % SERVICES / 250, nth % 250)}],
            "conditions": conditions,
            "containerStatuses": [{
                "name": "web", "ready": true, "started": true, "restartCount": 0,
                "image": "registry.example/team/web:1.2.3", "imageID": "i".repeat(90),
                "containerID": "c".repeat(77), "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }],
        },
    })
}

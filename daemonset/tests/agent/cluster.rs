// SPDX-License-Identifier: Apache-2.0
//! An API server with the few objects that an agent asks for, which keeps what it is told of them.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::node::Node;

const DAEMONSETS: &str = "/apis/apps/v1/namespaces/culvert/daemonsets";
pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const NODES: &str = "/api/v1/nodes";
pub const PODS: &str = "/api/v1/pods";

/// What the agent writes on its node.
const ANNOTATION: &str = "/metadata/annotations/culvert.io~1agent";

/// A cluster of one node with one pod, which is opted in.
pub struct Cluster {
    state: Arc<Mutex<State>>,
    node: String,
}

#[derive(Default)]
struct State {
    /// By collection and name.
    objects: BTreeMap<(&'static str, String), Value>,
    /// So many patches fail.
    refuse: u32,
    /// How many were refused.
    refused: u32,
    /// How often somebody asked for a taint to go: nobody's does.
    untaints: u32,
}

struct Request {
    method: String,
    target: String,
    is_merge: bool,
    body: Value,
}

// === impl Cluster ===

impl Cluster {
    /// Serves on loopback, and writes a kubeconfig into the node's directory.
    pub async fn start(node: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.unwrap_or_else(|e| panic!("{e}"));
        let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let kubeconfig = json!({
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "current-context": "c",
        });
        let written = fs::write(node.path("kubeconfig"), kubeconfig.to_string());
        written.unwrap_or_else(|e| panic!("{e}"));
        let cluster = Self {
            state: Arc::default(),
            node: node.name.clone(),
        };
        cluster.fill(node);
        let state = Arc::clone(&cluster.state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&state)));
            }
        });
        cluster
    }

    fn fill(&self, node: &Node) {
        for name in ["shop", "culvert"] {
            self.put(NAMESPACES, name, json!({"metadata": {"name": name}}));
        }
        self.put(
            NODES,
            &node.name,
            json!({
                "metadata": {"name": node.name, "labels": {"pool": "a"}, "annotations": {}},
                "status": {"nodeInfo": {"containerRuntimeVersion": "containerd://2.0.0"}},
            }),
        );
        self.select(json!({"pool": "a"}));
        let pod = fs::read(node.path("manifests/web.json")).unwrap_or_else(|e| panic!("{e}"));
        let pod = serde_json::from_slice(&pod).unwrap_or_else(|e| panic!("{e}"));
        self.put(PODS, "web", pod);
    }

    /// On which nodes the agents are to be.
    pub fn select(&self, labels: Value) {
        let spec = json!({"nodeSelector": labels, "containers": []});
        self.put(
            DAEMONSETS,
            "culvert-agent",
            json!({
                "metadata": {"name": "culvert-agent", "namespace": "culvert"},
                "spec": {"selector": {}, "template": {"spec": spec}},
            }),
        );
    }

    /// The agent's DaemonSet is about to go.
    pub fn delete_daemonset(&self) {
        self.put(
            DAEMONSETS,
            "culvert-agent",
            json!({
                "metadata": {
                    "name": "culvert-agent", "namespace": "culvert",
                    "deletionTimestamp": "2025-01-01T00:00:00Z",
                },
                "spec": {"selector": {}, "template": {"spec": {"containers": []}}},
            }),
        );
    }

    /// The next patches fail.
    pub fn refuse_patches(&self, count: u32) {
        self.lock().refuse = count;
    }

    /// How many patches failed.
    pub fn refused(&self) -> u32 {
        self.lock().refused
    }

    /// What the agent wrote on its node.
    pub fn annotation(&self) -> Option<String> {
        let state = self.lock();
        let node = state.objects.get(&(NODES, self.node.clone()))?;
        node.pointer(ANNOTATION)?.as_str().map(str::to_owned)
    }

    /// How often the agent tried to take a taint away, in vain.
    pub fn untaints(&self) -> u32 {
        self.lock().untaints
    }

    /// Adds or replaces an object, for who lists it from now on.
    pub fn put(&self, kind: &'static str, name: &str, object: Value) {
        self.lock().objects.insert((kind, name.to_owned()), object);
    }

    /// An object that nobody is told of.
    pub fn remove(&self, kind: &'static str, name: &str) {
        self.lock().objects.remove(&(kind, name.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

// === impl State ===

impl State {
    fn answer(&mut self, request: &Request) -> (u16, Value) {
        let path = request.target.split('?').next().unwrap_or_default();
        match (request.method.as_str(), kind(path)) {
            ("GET", Some(kind)) => (200, self.list(kind)),
            ("POST", _) => (201, request.body.clone()),
            (method, None) => self.one(method, path, request),
            (method, _) => panic!("{method} {path}"),
        }
    }

    fn list(&self, kind: &str) -> Value {
        let of_kind = self.objects.iter().filter(|((of, _), _)| *of == kind);
        let items: Vec<_> = of_kind.map(|(_, object)| object).collect();
        json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})
    }

    fn one(&mut self, method: &str, path: &str, request: &Request) -> (u16, Value) {
        let (collection, name) = path.rsplit_once('/').unwrap_or_default();
        let key = kind(collection).map(|kind| (kind, name.to_owned()));
        let Some(object) = key.and_then(|key| self.objects.get_mut(&key)) else {
            return failure(404);
        };
        if method == "PATCH" {
            if !request.is_merge {
                self.untaints += 1;
                return failure(403);
            }
            if self.refuse > 0 {
                self.refuse -= 1;
                self.refused += 1;
                return failure(500);
            }
            merge(object, &request.body);
        }
        (200, object.clone())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kind(path: &str) -> Option<&'static str> {
    let known = [DAEMONSETS, NAMESPACES, NODES, PODS];
    known.into_iter().find(|known| *known == path)
}

fn failure(code: u16) -> (u16, Value) {
    let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": "No"});
    (code, status)
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    for (name, value) in fields {
        match (value.is_null(), into.as_object_mut()) {
            (true, Some(object)) => drop(object.remove(name)),
            _ => merge(&mut into[name], value),
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let watch = request.target.contains("watch=true");
        let answered = match watch {
            // Nothing happens: what is to be known is listed, or asked for.
            true => watched(stream.get_mut()).await,
            false => {
                let (code, body) = lock(&state).answer(&request);
                whole(stream.get_mut(), code, &body.to_string()).await
            }
        };
        if watch || answered.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let found = head.iter().find_map(|line| {
            line.split_once(": ")
                .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        });
        found.map(|(_, value)| value.to_owned())
    };
    let length = header("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    let mut words = head.first()?.split(' ').map(str::to_owned);
    Some(Request {
        method: words.next()?,
        target: words.next()?,
        is_merge: header("content-type").is_some_and(|kind| kind.contains("merge-patch")),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
}

async fn whole(stream: &mut TcpStream, code: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).await
}

async fn watched(stream: &mut TcpStream) -> std::io::Result<()> {
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head).await?;
    stream.read_u8().await.map(drop)
}

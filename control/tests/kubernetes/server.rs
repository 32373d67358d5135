// SPDX-License-Identifier: Apache-2.0
//! A small API server on loopback: what control asks of the real one, and failures by order.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// The plural, the namespace and the name of an object.
type Key = (String, String, String);

pub struct Server {
    shared: Arc<Shared>,
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    events: Vec<(u64, String, &'static str, Value)>,
    /// Which requests fail: by a method, and a part of the path.
    failing: Option<(&'static str, &'static str)>,
    requests: Vec<(String, String)>,
}

struct Request {
    method: String,
    path: String,
    query: String,
    body: Value,
}

// === impl Server ===

impl Server {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            version: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.unwrap_or_else(|e| panic!("{e}"));
        let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&serving)));
            }
        });
        Self {
            shared,
            address,
            accepting,
        }
    }

    pub fn kubeconfig(&self) -> String {
        format!(
            "{{apiVersion: v1, kind: Config, current-context: c, \
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}], users: [{{name: u, user: {{}}}}]}}",
            self.address
        )
    }

    /// Replaces an object, or makes it.
    pub fn put(&self, plural: &str, object: Value) {
        self.shared.change(|state| state.put(plural, object));
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.shared.change(|state| state.delete(&key));
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.shared.lock().objects.get(&key).cloned()
    }

    /// From now on these requests are answered with 500.
    pub fn fail(&self, failing: Option<(&'static str, &'static str)>) {
        self.shared.lock().failing = failing;
    }

    /// How many requests there were of a method and a part of the path.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let state = self.shared.lock();
        let all = state.requests.iter();
        all.filter(|(m, p)| m == method && p.contains(path)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        self.version.send_replace(state.version);
        changed
    }
}

// === impl State ===

impl State {
    fn put(&mut self, plural: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let key = (
            plural.to_owned(),
            text("namespace").to_owned(),
            text("name").to_owned(),
        );
        let known = self.objects.insert(key, object.clone());
        let what = if known.is_some() { "MODIFIED" } else { "ADDED" };
        self.events
            .push((self.version, plural.to_owned(), what, object));
    }

    fn delete(&mut self, key: &Key) {
        let Some(mut object) = self.objects.remove(key) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.events
            .push((self.version, key.0.clone(), "DELETED", object));
    }

    fn answer(&mut self, request: &Request) -> (u16, Value) {
        self.requests
            .push((request.method.clone(), request.path.clone()));
        if self
            .failing
            .is_some_and(|(method, path)| request.method == method && request.path.contains(path))
        {
            return failure(500, "by order");
        }
        let (key, is_status) = key_of(&request.path);
        if key.0 == "tokenreviews" {
            return (201, reviewed(request.body.clone()));
        }
        match (request.method.as_str(), key.2.is_empty()) {
            ("GET", true) => (200, self.list(&key, &request.query)),
            ("POST", true) => self.create(&key, request.body.clone()),
            ("GET", false) => self.found(&key),
            ("PUT", false) => self.replace(&key, request.body.clone()),
            ("PATCH", false) => self.patch(&key, &request.body, is_status),
            ("DELETE", false) => {
                self.delete(&key);
                (200, json!({"kind": "Status", "status": "Success"}))
            }
            _ => failure(405, "not allowed"),
        }
    }

    fn list(&self, (plural, namespace, _): &Key, query: &str) -> Value {
        let of = |key: &&Key| key.0 == *plural && (namespace.is_empty() || key.1 == *namespace);
        let items: Vec<_> = self
            .objects
            .iter()
            .filter(|(key, _)| of(key))
            .filter(|(_, object)| plural != "leases" || is_selected(object, query))
            .map(|(_, object)| object)
            .collect();
        json!({"kind": "List", "metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }

    fn found(&self, key: &Key) -> (u16, Value) {
        let found = self.objects.get(key);
        found.map_or_else(|| failure(404, "not found"), |object| (200, object.clone()))
    }

    fn create(&mut self, key: &Key, mut object: Value) -> (u16, Value) {
        object["metadata"]["namespace"] = json!(key.1);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = (key.0.clone(), key.1.clone(), name.to_owned());
        if self.objects.contains_key(&key) {
            return failure(409, "it exists");
        }
        self.put(&key.0, object);
        let (_, created) = self.found(&key);
        (201, created)
    }

    fn replace(&mut self, key: &Key, object: Value) -> (u16, Value) {
        let Some(held) = self.objects.get(key) else {
            return failure(404, "not found");
        };
        let version = &object["metadata"]["resourceVersion"];
        if !version.is_null() && *version != held["metadata"]["resourceVersion"] {
            return failure(409, "it changed");
        }
        self.put(&key.0, object);
        self.found(key)
    }

    fn patch(&mut self, key: &Key, patch: &Value, is_status: bool) -> (u16, Value) {
        let Some(mut object) = self.objects.get(key).cloned() else {
            return failure(404, "not found");
        };
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return failure(409, "the uid is another");
        }
        let version = &patch["metadata"]["resourceVersion"];
        if !version.is_null() && *version != object["metadata"]["resourceVersion"] {
            return failure(409, "it changed");
        }
        if is_status {
            merge_conditions(&mut object, patch);
        } else {
            merge(&mut object, patch);
        }
        self.put(&key.0, object);
        self.found(key)
    }
}

/// The selectors that control uses: who has the label, or a value of it.
fn is_selected(lease: &Value, query: &str) -> bool {
    let label = lease["metadata"]["labels"]["culvert.io/lease"].as_str();
    let wanted = query
        .contains("control-replica")
        .then_some("control-replica");
    label.is_some() && (wanted.is_none() || wanted == label)
}

/// `/apis/<group>/<version>/namespaces/<namespace>/<plural>/<name>/status`, or less of it.
fn key_of(path: &str) -> (Key, bool) {
    let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
    let skip = if parts[0] == "api" { 2 } else { 3 };
    let rest = parts.get(skip..).unwrap_or_default();
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let at = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
    ((at(0), namespace.to_owned(), at(1)), at(2) == "status")
}

fn failure(code: u16, message: &str) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": reason});
    (code, status)
}

/// A token that ends in `.token-<node>` is that of the proxy of the node.
fn reviewed(mut review: Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let node = token
        .rsplit('.')
        .next()
        .and_then(|it| it.strip_prefix("token-"));
    let Some(node) = node.map(str::to_owned) else {
        review["status"] = json!({"authenticated": false});
        return review;
    };
    review["status"] = json!({
        "authenticated": true,
        "audiences": ["culvert.io/control"],
        "user": {
            "username": "system:serviceaccount:culvert:culvert-proxy",
            "uid": "account",
            "extra": {
                "authentication.kubernetes.io/pod-name": [format!("proxy-{node}")],
                "authentication.kubernetes.io/pod-uid": [format!("uid-proxy-{node}")],
            },
        },
    });
    review
}

fn merge(into: &mut Value, patch: &Value) {
    let (Some(fields), true) = (patch.as_object(), into.is_object()) else {
        *into = patch.clone();
        return;
    };
    for (name, value) in fields {
        merge(&mut into[name], value);
    }
}

/// As a strategic patch does, whose key is `type`.
fn merge_conditions(object: &mut Value, patch: &Value) {
    let new = patch["status"]["conditions"].as_array().cloned();
    let conditions = &mut object["status"]["conditions"];
    let mut all = conditions.as_array().cloned().unwrap_or_default();
    for new in new.unwrap_or_default() {
        match all.iter_mut().find(|it| it["type"] == new["type"]) {
            Some(old) => merge(old, &new),
            None => all.push(new),
        }
    }
    *conditions = json!(all);
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = request(&mut stream).await {
        let served = if request.query.contains("watch=true") {
            watched(stream.get_mut(), &request, &shared).await
        } else {
            let (code, body) = shared.change(|state| state.answer(&request));
            whole(stream.get_mut(), code, &body).await
        };
        if served.is_err() {
            return;
        }
    }
}

async fn request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let (mut first, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        match line.strip_prefix("content-length:") {
            Some(number) => length = number.trim().parse().ok()?,
            None if line.is_empty() => break,
            None if first.is_empty() => first = line,
            None => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let mut words = first.split(' ');
    let method = words.next()?.to_ascii_uppercase();
    let (path, query) = words
        .next()
        .map(|target| target.split_once('?').unwrap_or((target, "")))?;
    Some(Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
}

async fn whole(stream: &mut TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await
}

async fn watched(
    stream: &mut TcpStream,
    request: &Request,
    shared: &Shared,
) -> std::io::Result<()> {
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await?;
    let from = request
        .query
        .split('&')
        .find_map(|it| it.strip_prefix("resourceversion="));
    let mut from: u64 = from.and_then(|from| from.parse().ok()).unwrap_or_default();
    let plural = key_of(&request.path).0.0;
    let mut versions = shared.version.subscribe();
    loop {
        versions.borrow_and_update();
        let (news, version) = {
            let state = shared.lock();
            let news = state.events.iter();
            let news = news.filter(|(version, of, ..)| *version > from && *of == plural);
            let news = news.map(|(_, _, what, object)| json!({"type": what, "object": object}));
            (news.collect::<Vec<_>>(), state.version)
        };
        for event in news {
            let line = format!("{event}\n");
            let chunk = format!("{:x}\r\n{line}\r\n", line.len());
            stream.write_all(chunk.as_bytes()).await?;
        }
        from = version;
        let mut byte = [0];
        tokio::select! {
            changed = versions.changed() => if changed.is_err() { return Ok(()) },
            peeked = stream.peek(&mut byte) => if !matches!(peeked, Ok(1..)) {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            },
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! A small API server on loopback: lists in pages, watches, and fails when told to.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

pub(super) const PODS: &str = "/api/v1/pods";
pub(super) const NODES: &str = "/api/v1/nodes";
pub(super) const NAMESPACES: &str = "/api/v1/namespaces";
pub(super) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// What is to happen instead of the next answer.
#[derive(Clone, Debug)]
pub(super) enum Instead {
    /// An error of this code.
    Code(u16),
    /// The answer, but later.
    Late(Duration),
    /// An answer that ends before anything is said.
    Nothing,
    /// A watch's event that says so.
    Gone,
}

pub(super) struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<AbortHandle>,
    tasks: JoinSet<()>,
}

struct Shared {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    events: Vec<(u64, &'static str, &'static str, Value)>,
    instead: BTreeMap<(&'static str, bool), VecDeque<Instead>>,
    requests: Vec<String>,
}

struct Query {
    path: &'static str,
    parameters: BTreeMap<String, String>,
}

// === impl Server ===

impl Server {
    pub(super) async fn start() -> Self {
        let shared = Shared {
            state: Mutex::default(),
            version: watch::Sender::new(0),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.unwrap_or_else(|e| panic!("{e}"));
        let mut server = Self {
            shared: Arc::new(shared),
            address: listener.local_addr().unwrap_or_else(|e| panic!("{e}")),
            accepting: None,
            tasks: JoinSet::new(),
        };
        server.accept(listener);
        server
    }

    pub(super) fn client(&self) -> Client {
        let url = format!("http://{}", self.address).parse();
        let config = Config::new(url.unwrap_or_else(|e| panic!("{e}")));
        crate::client::with_config(&config).unwrap_or_else(|e| panic!("{e}"))
    }

    fn accept(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        self.accepting = Some(self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&shared)));
            }
        }));
    }

    /// Ends all connections and takes no new one.
    pub(super) async fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            while self.tasks.join_next().await.is_some() {}
        }
    }

    pub(super) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await;
        self.accept(listener.unwrap_or_else(|e| panic!("{e}")));
    }

    pub(super) fn put(&self, path: &'static str, mut object: Value) {
        self.shared.change(|state| {
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let known = state.objects.insert((path, name(&object)), object.clone());
            let what = if known.is_some() { "MODIFIED" } else { "ADDED" };
            state.events.push((state.version, path, what, object));
        });
    }

    pub(super) fn delete(&self, path: &'static str, wanted: &str) {
        self.shared.change(|state| {
            let Some(mut object) = state.objects.remove(&(path, wanted.to_owned())) else {
                panic!("no {wanted}");
            };
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.events.push((state.version, path, "DELETED", object));
        });
    }

    /// As etcd's compaction: what happened is forgotten.
    pub(super) fn forget(&self) {
        self.shared.lock().events.clear();
    }

    pub(super) fn instead_of_list(&self, path: &'static str, instead: &[Instead]) {
        let mut state = self.shared.lock();
        state.instead.insert((path, false), instead.to_vec().into());
    }

    pub(super) fn instead_of_watch(&self, path: &'static str, instead: &[Instead]) {
        let mut state = self.shared.lock();
        state.instead.insert((path, true), instead.to_vec().into());
    }

    /// The requests for a kind, lists or watches.
    pub(super) fn requests(&self, path: &str, watches: bool) -> Vec<String> {
        let state = self.shared.lock();
        let of_kind = state.requests.iter().filter(|request| {
            request.split('?').next() == Some(path) && request.contains("watch=true") == watches
        });
        of_kind.cloned().collect()
    }

    /// How many connections are open to it.
    pub(super) fn connections(&self) -> usize {
        self.shared.version.receiver_count()
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        state.version += 1;
        change(&mut state);
        self.version.send_replace(state.version);
    }
}

// === impl Query ===

impl Query {
    fn parse(target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let known = [
            PODS,
            NODES,
            NAMESPACES,
            SLICES,
            "/api/v1/services",
            "/api/v1/serviceaccounts",
        ];
        let path = known.into_iter().find(|known| *known == path);
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.replace("%3D", "=")))
        };
        Self {
            path: path.unwrap_or_else(|| panic!("{target}")),
            parameters: query.split('&').filter_map(pair).collect(),
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.parameters.get(name)?.parse().ok()
    }

    fn is_watch(&self) -> bool {
        self.parameters.contains_key("watch")
    }

    fn selects(&self, object: &Value) -> bool {
        let Some(selector) = self.parameters.get("fieldSelector") else {
            return true;
        };
        let (field, wanted) = selector.split_once('=').unwrap_or_default();
        object.pointer(&format!("/{}", field.replace('.', "/"))) == Some(&json!(wanted))
    }
}

fn name(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Counted by `Server::connections`.
    let versions = shared.version.subscribe();
    let mut stream = BufReader::new(stream);
    while let Some(target) = request(&mut stream).await {
        shared.lock().requests.push(target.clone());
        let query = Query::parse(&target);
        let answered = answer(stream.get_mut(), &query, &shared, versions.clone()).await;
        if answered.is_err() {
            return;
        }
    }
}

async fn request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut first = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return first,
            line => {
                first.get_or_insert_with(|| line.split(' ').nth(1).unwrap_or_default().to_owned());
            }
        }
    }
}

async fn answer(
    stream: &mut TcpStream,
    query: &Query,
    shared: &Shared,
    versions: watch::Receiver<u64>,
) -> std::io::Result<()> {
    let key = (query.path, query.is_watch());
    let instead = shared
        .lock()
        .instead
        .get_mut(&key)
        .and_then(VecDeque::pop_front);
    match instead {
        Some(Instead::Code(code)) => {
            let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": "by order", "reason": "Order"});
            return whole(stream, code, &status).await;
        }
        Some(Instead::Late(late)) => tokio::time::sleep(late).await,
        Some(Instead::Nothing) => return chunks_end(stream, &[]).await,
        Some(Instead::Gone) => {
            let status = json!({"kind": "Status", "code": 410, "message": "too old"});
            return chunks_end(stream, &[json!({"type": "ERROR", "object": status})]).await;
        }
        None => {}
    }
    if query.is_watch() {
        return watched(stream, query, shared, versions).await;
    }
    let list = listed(query, &shared.lock());
    whole(stream, 200, &list).await
}

fn listed(query: &Query, state: &State) -> Value {
    let of_kind = state
        .objects
        .iter()
        .filter(|((path, _), _)| *path == query.path);
    let selected: Vec<_> = of_kind
        .map(|(_, object)| object)
        .filter(|object| query.selects(object))
        .collect();
    let skip = usize::try_from(query.number("continue").unwrap_or_default());
    let limit = usize::try_from(query.number("limit").unwrap_or(u64::MAX));
    let (skip, limit) = (skip.unwrap_or(0), limit.unwrap_or(usize::MAX));
    let end = skip.saturating_add(limit).min(selected.len());
    let next = (end < selected.len()).then(|| end.to_string());
    json!({
        "kind": "List",
        "metadata": {"resourceVersion": state.version.to_string(), "continue": next},
        "items": selected[skip..end],
    })
}

async fn whole(stream: &mut TcpStream, code: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

const CHUNKED: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";

async fn chunks_end(stream: &mut TcpStream, events: &[Value]) -> std::io::Result<()> {
    stream.write_all(CHUNKED).await?;
    for event in events {
        chunk(stream, event).await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

async fn chunk(stream: &mut TcpStream, event: &Value) -> std::io::Result<()> {
    let line = format!("{event}\n");
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    stream.write_all(chunk.as_bytes()).await
}

async fn watched(
    stream: &mut TcpStream,
    query: &Query,
    shared: &Shared,
    mut versions: watch::Receiver<u64>,
) -> std::io::Result<()> {
    stream.write_all(CHUNKED).await?;
    let mut from = query.number("resourceVersion").unwrap_or_default();
    loop {
        versions.borrow_and_update();
        let (news, version) = {
            let state = shared.lock();
            let news = state.events.iter().filter(|(version, path, _, object)| {
                *version > from && *path == query.path && query.selects(object)
            });
            let news = news.map(|(_, _, what, object)| json!({"type": what, "object": object}));
            (news.collect::<Vec<_>>(), state.version)
        };
        for event in &news {
            chunk(stream, event).await?;
        }
        from = version;
        let mut byte = [0];
        tokio::select! {
            changed = versions.changed() => if changed.is_err() { return Ok(()) },
            peeked = stream.peek(&mut byte) => match peeked {
                Ok(0) | Err(_) => return Err(std::io::ErrorKind::BrokenPipe.into()),
                Ok(_) => {}
            },
        }
    }
}

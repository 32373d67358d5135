// SPDX-License-Identifier: Apache-2.0
//! Against an API server in this process, which has one pod.

use std::{
    io,
    sync::MutexGuard,
    task::{Context, Poll},
};

use prometheus::Registry;
use tonic::codegen::{BoxFuture, Service, http};

use super::*;
use crate::testing::{objects, pod, report};

/// Its pod, and how often it was asked to read and to write it. Clones share it.
#[derive(Clone)]
struct FakeApi(Arc<Mutex<State>>);

struct State {
    pod: Value,
    version: u64,
    reads: usize,
    patches: usize,
}

impl FakeApi {
    fn new() -> Self {
        let pod = json!({
            "metadata": {"namespace": "shop", "name": "a", "uid": "uid-a"},
            "status": {"podIPs": [{"ip": "10.0.0.1"}]},
        });
        Self(Arc::new(Mutex::new(State {
            pod,
            version: 10,
            reads: 0,
            patches: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| panic!("{e}"))
    }

    /// The index that saw the pod as it is now.
    fn index(&self) -> Index {
        let text = pod("a", "n1", &["10.0.0.1"]);
        let version = format!("metadata: {{resourceVersion: '{}', ", self.state().version);
        let mut index = Index::of_conditions();
        index.reset(objects(&text.replace("metadata: {", &version)));
        index
    }

    fn writer(&self, index: Index) -> Writer {
        let metrics = Metrics::register(&Registry::new()).unwrap_or_else(|e| panic!("{e}"));
        Writer {
            client: Client::new(self.clone(), "shop"),
            index: Arc::new(Mutex::new(index)),
            requests: Arc::new(Semaphore::new(1)),
            failures: Failures::new(metrics, Notices::new().0),
        }
    }
}

impl State {
    fn set(&mut self, status: &str, generation: u64) {
        self.version += 1;
        self.pod["status"]["conditions"] = json!([{
            "type": MESHED_CONDITION, "status": status,
            "message": format!("netns=1 generation={generation} addresses=10.0.0.1"),
        }]);
    }

    fn said(&self) -> &Value {
        &self.pod["status"]["conditions"][0]["status"]
    }

    fn answer(&mut self, method: &http::Method, body: &[u8]) -> (u16, Value) {
        let pod = |state: &Self| {
            let mut pod = state.pod.clone();
            pod["metadata"]["resourceVersion"] = json!(state.version.to_string());
            pod
        };
        if method == http::Method::GET {
            self.reads += 1;
            let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [pod(self)]});
            return (200, list);
        }
        self.patches += 1;
        let patch: Value = serde_json::from_slice(body).unwrap_or_else(|e| panic!("{e}"));
        let metadata = &patch["metadata"];
        if metadata["resourceVersion"] != json!(self.version.to_string())
            || metadata["uid"] != self.pod["metadata"]["uid"]
        {
            let status = json!({
                "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                "reason": "Conflict", "code": 409, "message": "the object has been modified",
            });
            return (409, status);
        }
        self.version += 1;
        self.pod["status"]["conditions"] = patch["status"]["conditions"].clone();
        (200, pod(self))
    }
}

impl Service<http::Request<kube::client::Body>> for FakeApi {
    type Response = http::Response<kube::client::Body>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, io::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.map_err(io::Error::other)?;
            let (code, answer) = api.state().answer(&head.method, &body);
            let mut response = http::Response::new(answer.to_string().into_bytes().into());
            *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
            Ok(response)
        })
    }
}

async fn written(api: &FakeApi, index: Index) {
    let writer = api.writer(index);
    let done = timeout(PATIENCE, writer.write(PodUid("uid-a".into()))).await;
    assert!(done.is_ok());
}

fn withdrawn(api: &FakeApi) -> Index {
    api.state().set("True", 5);
    let mut index = api.index();
    let steered = index.report("n1", &report("a", 1, 8, true));
    let withdrawn = index.report("n1", &report("a", 1, 9, false));
    assert!(steered.is_ok() && withdrawn.is_ok());
    index
}

#[tokio::test]
async fn one_request_writes_what_is_as_it_was_seen() {
    let api = FakeApi::new();
    written(&api, withdrawn(&api)).await;
    let state = api.state();
    assert_eq!((state.patches, state.reads), (1, 0));
    assert_eq!(state.said(), "False");
}

/// Changes of what nobody reads are not followed, and kubelets make many.
#[tokio::test]
async fn a_pod_that_changed_meanwhile_is_looked_at_and_written() {
    let api = FakeApi::new();
    let index = withdrawn(&api);
    api.state().version += 5;
    written(&api, index).await;
    let state = api.state();
    assert_eq!((state.patches, state.reads), (2, 1));
    assert_eq!(state.said(), "False");
}

/// Another replica wrote what the node said later, and this one has not seen that.
#[tokio::test]
async fn a_later_word_is_not_written_over() {
    let api = FakeApi::new();
    let index = withdrawn(&api);
    api.state().set("True", 10);
    written(&api, index).await;
    let state = api.state();
    assert_eq!(state.said(), "True");
    assert_eq!((state.patches, state.reads), (1, 1));
}

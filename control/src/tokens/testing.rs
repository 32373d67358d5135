// SPDX-License-Identifier: Apache-2.0
//! Tokens for tests, and an API server that reviews them.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use culvert_api::workload::PodUid;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::codegen::{BoxFuture, Service, http};

use super::review::Proof;

/// Base64 for URLs, without padding.
pub(super) fn encode(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut encoded = String::new();
    for bytes in text.as_bytes().chunks(3) {
        let all = bytes
            .iter()
            .fold(0, |all: u32, byte| all << 8 | u32::from(*byte));
        let all = all << (8 * (3 - bytes.len()));
        for digit in 0..=bytes.len() {
            let value = all >> (18 - 6 * digit) & 63;
            encoded.push(char::from(DIGITS[value as usize]));
        }
    }
    encoded
}

/// A token that says this of itself, and no two of which are the same.
pub(crate) fn token(subject: &str, audience: &str, ends_in: i64, salt: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let exp = i64::try_from(now.as_secs()).unwrap_or_default() + ends_in;
    let payload =
        format!(r#"{{"sub":"{subject}","aud":["{audience}"],"exp":{exp},"jti":"{salt}"}}"#);
    format!("e30.{}.{}", encode(&payload), encode(salt))
}

/// What Kubernetes 1.20.2 answered a TokenReview of a token that was bound to a proxy's pod. Since
/// 1.30 there are `node-name`, `node-uid` and `credential-id` as well: `tokenreview-1.33.json` is
/// written after the source and the documentation of that version, not recorded.
const V1_20: &str = include_str!("recorded/tokenreview-1.20.json");
const V1_33: &str = include_str!("recorded/tokenreview-1.33.json");

/// The status of that answer, for the pod of [`proof`].
pub(crate) fn status_1_20() -> Value {
    status(V1_20)
}

/// The same of 1.33.
pub(super) fn status_1_33() -> Value {
    status(V1_33)
}

fn status(recorded: &str) -> Value {
    let proof = proof();
    let text = recorded
        .replace("culvert-proxy-6rf2b", &proof.pod)
        .replace("f9fde4e4-837b-406d-9e66-d40c73e1e9d8", &proof.uid.0)
        .replace("b9d7b09f-9f42-42f7-b0d3-1cfa552b622c", "uid-account");
    let review: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}"));
    review["status"].clone()
}

/// Of a proxy's pod.
pub(super) fn proof() -> Proof {
    Proof {
        pod: "culvert-proxy-1".to_owned(),
        uid: PodUid("uid-culvert-proxy-1".to_owned()),
        node: None,
        account: Some("uid-account".to_owned()),
    }
}

/// An API server that knows these tokens. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(crate) struct State {
    /// The `status` of each token's review; any other token is not authenticated.
    pub(crate) tokens: HashMap<String, Value>,
    /// Connections are closed without an answer.
    pub(super) away: bool,
    /// How many reviews were asked for.
    pub(super) asked: usize,
}

impl FakeApi {
    /// Its client without a network: nothing but the clock makes it wait.
    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "culvert")
    }

    /// Its client over loopback.
    pub(super) async fn client_over_loopback(&self) -> kube::Client {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.unwrap_or_else(|e| panic!("{e}"));
        let address = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let serving = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let api = serving.clone();
                tokio::spawn(async move { api.serve(stream).await });
            }
        });
        let url = format!("http://{address}").parse();
        let config = kube::Config::new(url.unwrap_or_else(|e| panic!("{e}")));
        kube::Client::try_from(config).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| panic!("{e}"))
    }

    /// One request after the other, until one is not answered.
    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut read = Vec::new();
        loop {
            let (head, body) = request(&mut stream, &mut read).await?;
            let (code, answer) = self.answer(&head, &body)?;
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all((head + &answer).as_bytes()).await.ok()?;
        }
    }

    fn answer(&self, head: &str, body: &[u8]) -> Option<(u16, Value)> {
        let mut state = self.state();
        if head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews") {
            state.asked += 1;
        }
        if state.away {
            return None;
        }
        let review: Value = serde_json::from_slice(body).ok()?;
        let status = state.tokens.get(review["spec"]["token"].as_str()?);
        let status = status
            .cloned()
            .unwrap_or_else(|| json!({"authenticated": false}));
        let answer = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {}, "spec": review["spec"], "status": status,
        });
        Some((201, answer))
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
            let head = format!("{} {} ", head.method, head.uri.path());
            let body = body.collect_bytes().await.map_err(io::Error::other)?;
            let answer = api.answer(&head, &body);
            let (code, answer) = answer.ok_or_else(|| io::Error::other("away"))?;
            let mut response = http::Response::new(answer.to_string().into_bytes().into());
            *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
            Ok(response)
        })
    }
}

/// The head of the next request, and its body.
async fn request(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    loop {
        let end = read
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .map(|at| at + 4);
        let head = end.map(|end| String::from_utf8_lossy(&read[..end]).into_owned());
        let length = head.as_deref().map(content_length);
        if let (Some(end), Some(head), Some(length)) = (end, head, length)
            && read.len() >= end + length
        {
            let rest = read.split_off(end + length);
            let body = std::mem::replace(read, rest).split_off(end);
            return Some((head, body));
        }
        let count = stream.read_buf(read).await.ok()?;
        (count > 0).then_some(())?;
    }
}

fn content_length(head: &str) -> usize {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or_default()
}

// SPDX-License-Identifier: Apache-2.0
//! Control with what an earlier release kept, and with the bytes that its proxy sent.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use culvert_api::grpc::v1::{self, WatchRequest, WatchResponse, watch_response::Kind};
use prost::{
    Message,
    bytes::{Buf, BufMut},
};
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::cluster::{Cluster, bearer};

const PATIENCE: Duration = Duration::from_secs(20);

/// Messages as they are on the wire.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// Where the release is.
pub fn release() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/recorded/0.1.0")
}

/// The last call that was recorded: what each side sent, in order.
fn last_call(file: &str) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let text = fs::read_to_string(release().join(file)).unwrap_or_else(|e| panic!("{e}"));
    let lines = text.lines().map(serde_json::from_str);
    let lines: Result<Vec<Value>, _> = lines.collect();
    let mut lines = lines.unwrap_or_else(|e| panic!("{e}"));
    let last = lines.last().map(|line| line["call"].clone());
    lines.retain(|line| Some(&line["call"]) == last.as_ref());
    let (proxy, control): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line["from"] == "proxy");
    (bodies(&proxy), bodies(&control))
}

/// Behind the flag and the length of each gRPC message.
fn bodies(lines: &[&Value]) -> Vec<Vec<u8>> {
    let hex = lines.iter().filter_map(|line| line["bytes"].as_str());
    let bytes = hex.map(|hex| {
        let digits = hex.as_bytes().as_chunks::<2>().0.iter();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        digits.skip(5).filter_map(byte).collect()
    });
    bytes.collect()
}

/// What an answer is about, and the answer.
fn about(bytes: &[u8]) -> (u64, String, Kind) {
    let answer = WatchResponse::decode(bytes).unwrap_or_else(|e| panic!("{e}"));
    let kind = answer.kind.unwrap_or_else(|| panic!("no kind"));
    let what = match &kind {
        Kind::Hello(_) => "hello".to_owned(),
        Kind::Destination(destination) => format!("{:?}", destination.destination),
        Kind::Policy(policy) => format!("policy of {}", policy.pod_uid),
        Kind::Reported(reported) => format!("{reported:?}"),
        Kind::Issuer(_) => "issuer".to_owned(),
    };
    (answer.sequence, what, kind)
}

/// Without the fields that came after the release, which its proxies pass over.
fn as_read_then(mut kind: Kind) -> Kind {
    use v1::destination::Kind as Of;
    match &mut kind {
        Kind::Policy(policy) => (policy.ports, policy.access_log) = (None, 0),
        Kind::Destination(destination) => match &mut destination.kind {
            Some(Of::Service(service)) => {
                service.protocol = 0;
                service.set.iter_mut().for_each(|of| of.protocol = 0);
            }
            Some(Of::Pod(pod)) => pod.endpoint.iter_mut().for_each(|of| of.protocol = 0),
            Some(Of::Unknown(unknown)) => unknown.undeclared = false,
            None => {}
        },
        Kind::Hello(_) | Kind::Reported(_) | Kind::Issuer(_) => {}
    }
    kind
}

async fn next(answers: &mut Streaming<Vec<u8>>, waited_for: &BTreeMap<String, Kind>) -> Vec<u8> {
    let answer = timeout(PATIENCE, answers.message()).await;
    match answer {
        Ok(Ok(Some(answer))) => answer,
        other => panic!("{other:?} instead of {waited_for:#?}"),
    }
}

#[tokio::test]
async fn an_earlier_proxy_is_answered_as_then_from_what_an_earlier_control_kept() {
    let cluster = Cluster::of_release(&release()).await;
    let anchors = fs::read(release().join("state/control/trust-anchors.pem"));
    assert_eq!(
        anchors.ok(),
        Some(cluster.anchors()),
        "the authority is the same"
    );
    let (said, answered) = last_call("grpc-watch.jsonl");
    let mut expected = BTreeMap::new();
    for answer in &answered {
        let (_, what, kind) = about(answer);
        expected.entry(what).or_insert(kind);
    }
    assert!(expected.len() > 4, "{expected:#?}");

    let (ask, asked) = mpsc::channel(64);
    let is_ack = |bytes: &&Vec<u8>| bytes.first() == Some(&0x3a);
    for message in said.iter().filter(|message| !is_ack(message)) {
        assert!(ask.send(message.clone()).await.is_ok());
    }
    let mut client = Grpc::new(cluster.channel().await);
    assert!(client.ready().await.is_ok());
    let request = bearer("token-n1", ReceiverStream::new(asked));
    let path = "/culvert.control.v1.Discovery/Watch".parse();
    let path = path.unwrap_or_else(|e| panic!("{e}"));
    let answers = client.streaming(request, path, Raw).await;
    let mut answers = answers.unwrap_or_else(|e| panic!("{e}")).into_inner();
    while !expected.is_empty() {
        let (sequence, what, kind) = about(&next(&mut answers, &expected).await);
        if let Some(then) = expected.remove(&what) {
            assert_eq!(as_read_then(kind), then, "{what}");
        }
        let ack = v1::watch_request::Kind::Ack(v1::Ack { sequence });
        let ack = WatchRequest { kind: Some(ack) };
        assert!(ask.send(ack.encode_to_vec()).await.is_ok());
    }
    drop(answers);
    cluster.stop().await;
}

/// The pod was meshed when its certificate was asked for, and not any more at the end of the record.
fn opt_in(cluster: &Cluster, file: &str) {
    let path = release().join("state/manifests").join(file);
    let text = fs::read(path).unwrap_or_else(|e| panic!("{e}"));
    let mut pod: Value = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{e}"));
    pod["metadata"]["annotations"]["culvert.io/inject"] = "enabled".into();
    cluster.write(file, &pod.to_string());
}

#[tokio::test]
async fn an_earlier_proxy_s_request_for_a_certificate_is_signed() {
    let cluster = Cluster::of_release(&release()).await;
    opt_in(&cluster, "pod-default.plain.json");
    let (said, _) = last_call("grpc-certify.jsonl");
    let [request] = said.as_slice() else {
        panic!("{said:?}")
    };
    let mut client = Grpc::new(cluster.channel().await);
    assert!(client.ready().await.is_ok());
    let request = bearer("token-n1", request.clone());
    let path = "/culvert.control.v1.Identity/Certify".parse();
    let path = path.unwrap_or_else(|e| panic!("{e}"));
    let answer = client.unary(request, path, Raw).await;
    let answer = answer.unwrap_or_else(|e| panic!("{e}")).into_inner();
    let answer = v1::CertifyResponse::decode(&answer[..]).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(answer.chain.len(), 2, "the leaf and the issuer");
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_of_other_versions_is_refused_and_counted() {
    let cluster = Cluster::start().await;
    let far = v1::Hello {
        newest_version: 9,
        oldest_version: 8,
        node: "n1".to_owned(),
    };
    let status = cluster.refused("token-n1", far).await;
    assert!(
        status.message().contains("8–9") && status.message().contains("1–1"),
        "{status}"
    );
    cluster
        .until_metric("culvert_control_version_mismatches_total 1")
        .await;
    cluster.stop().await;
}

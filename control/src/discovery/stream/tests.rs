// SPDX-License-Identifier: Apache-2.0

use std::sync::Mutex;

use futures_util::{FutureExt, StreamExt};
use prometheus::Registry;

use super::*;
use crate::{
    discovery::{Discovery, Kept, Parts, until as answers},
    index::{Index, Reports},
    metrics::Metrics,
    tokens::{Authenticator, TokenFile},
};

fn authenticator() -> Authenticator {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let path = dir.path().join("tokens.json");
    // `printf secret | sha256sum`
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let written = std::fs::write(&path, format!(r#"{{"n1": "{hash}"}}"#));
    assert!(written.is_ok(), "{written:?}");
    TokenFile::open(path).authenticator()
}

fn stream(messages: mpsc::Sender<WatchResponse>) -> Stream {
    let authenticator = authenticator();
    let mut request = tonic::Request::new(());
    let value = "Bearer secret".parse().unwrap_or_else(|e| panic!("{e}"));
    request.metadata_mut().insert("authorization", value);
    let caller = authenticator.admit(&request).now_or_never();
    let Some(Ok(caller)) = caller else {
        panic!("{caller:?}");
    };
    let discovery = Discovery::new(Parts {
        index: Arc::new(Mutex::new(Index::new(Reports::default()))),
        kept: Kept::File(watch::channel(0).1),
        stopping: watch::channel(false).1,
        authenticator,
        metrics: Metrics::register(&Registry::new()).unwrap_or_else(|e| panic!("{e}")),
        max_subscriptions: 10,
        issuer: watch::channel(Vec::new()).1,
    });
    Stream::new(discovery.shared, caller, messages)
}

fn hello() -> Kind {
    Kind::Hello(VERSIONS.into())
}

#[tokio::test]
async fn a_node_that_does_not_read_is_cut_off_and_told_why() {
    let (messages, receiver) = mpsc::channel(1);
    let mut stream = stream(messages);
    stream.patience = Duration::from_millis(10);
    assert!(stream.send(hello()).await.is_ok());
    let Err(status) = stream.send(hello()).await else {
        panic!("nothing bounds the queue");
    };
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let (end, ended) = oneshot::channel();
    assert!(end.send(status).is_ok());
    drop(stream);
    let answers: Vec<_> = answers(receiver, ended).collect().await;
    assert!(matches!(answers.as_slice(), [Ok(_), Err(_)]), "{answers:?}");
}

#[tokio::test]
async fn a_stream_that_ends_well_has_no_status() {
    let (messages, receiver) = mpsc::channel(1);
    let mut stream = stream(messages);
    assert!(stream.send(hello()).await.is_ok());
    let (end, ended) = oneshot::channel();
    drop((stream, end));
    let answers: Vec<_> = answers(receiver, ended).collect().await;
    assert!(
        matches!(answers.as_slice(), [Ok(first)] if first.sequence == 1),
        "{answers:?}"
    );
}

#[tokio::test]
async fn reports_that_nobody_waits_for_are_bounded() {
    let (messages, _receiver) = mpsc::channel(1);
    let mut stream = stream(messages);
    let early = |pod: usize| Report {
        uid: PodUid(pod.to_string()),
        cookie: NetnsCookie(1),
        generation: 1,
        steered: true,
        reporter: Reporter::default(),
    };
    assert!((0..MAX_REPORTS).all(|pod| stream.report(early(pod)).is_ok()));
    assert!(
        stream.report(early(0)).is_ok(),
        "a newer report takes the place of the older"
    );
    let refused = stream
        .report(early(MAX_REPORTS))
        .map_err(|status| status.code());
    assert_eq!(refused, Err(tonic::Code::ResourceExhausted));
}

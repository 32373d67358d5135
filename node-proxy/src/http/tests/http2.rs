// SPDX-License-Identifier: Apache-2.0
//! Streams.

use std::time::Duration;

use bytes::Bytes;
use culvert_api::policy::InboundPolicy;
use http_body_util::{BodyExt, Empty};
use tokio::{net::TcpStream, time::timeout};

use super::rig::mesh;
use crate::carry::tests::rig::{SERVICE, ok, rig};

pub(super) type Client = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;
pub(super) type App = h2::server::Connection<TcpStream, Bytes>;
pub(super) type Asked = (
    http::Request<h2::RecvStream>,
    h2::server::SendResponse<Bytes>,
);

pub(super) async fn client(tcp: TcpStream) -> Client {
    let builder = hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let io = hyper_util::rt::TokioIo::new(tcp);
    let (client, driver) = ok(builder.handshake(io).await);
    tokio::spawn(driver);
    client
}

fn get() -> http::Request<Empty<Bytes>> {
    ok(http::Request::get("http://cart/").body(Empty::new()))
}

pub(super) async fn next(app: &mut App) -> Asked {
    let next = timeout(Duration::from_secs(5), app.accept()).await;
    let next = ok(next).unwrap_or_else(|| panic!("the connection ended"));
    ok(next)
}

/// Drives an application's connection while `doing`.
pub(super) async fn beside<T>(app: &mut App, doing: impl Future<Output = T>) -> T {
    tokio::select! {
        done = doing => done,
        next = app.accept() => panic!("it ended, or asked: {}", next.is_some()),
        () = tokio::time::sleep(Duration::from_secs(5)) => panic!("too late"),
    }
}

#[test]
fn a_stream_that_is_reset_without_an_error_is_no_whole_answer() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = client(rig.dial_out(SERVICE).await).await;
        let answer = tokio::spawn(client.send_request(get()));
        let (tcp, _) = rig.accepted().await;
        let mut app = ok(h2::server::handshake(tcp).await);
        let (_, mut respond) = next(&mut app).await;
        let announced = ok(http::Response::builder()
            .header("content-length", 10)
            .body(()));
        let mut body = ok(respond.send_response(announced, false));
        ok(body.send_data(Bytes::from_static(b"hello"), false));
        let mut answer = ok(ok(beside(&mut app, answer).await)).into_body();
        let first = beside(&mut app, answer.frame()).await;
        let first = first.map(|first| ok(ok(first).into_data().map_err(|_| "no data")));
        assert_eq!(first.as_deref(), Some(&b"hello"[..]));
        body.send_reset(h2::Reason::NO_ERROR);
        let rest = beside(&mut app, answer.frame()).await;
        assert!(
            matches!(rest, Some(Err(_))),
            "a part passed for the whole: {rest:?}"
        );
    });
}

#[test]
fn more_streams_than_an_application_allows_do_not_wait_for_each_other() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = client(rig.dial_out(SERVICE).await).await;
        let first = tokio::spawn(client.send_request(get()));
        let (tcp, _) = rig.accepted().await;
        let mut builder = h2::server::Builder::new();
        let mut app = ok(builder
            .max_concurrent_streams(1)
            .handshake::<_, Bytes>(tcp)
            .await);
        let (_, mut respond) = next(&mut app).await;
        let _open = ok(respond.send_response(http::Response::new(()), false));
        let _first = ok(ok(beside(&mut app, first).await));
        let second = tokio::spawn(client.send_request(get()));
        let (tcp, _) = rig.accepted().await;
        let mut other = ok(h2::server::handshake(tcp).await);
        let (_, mut respond) = next(&mut other).await;
        ok(respond.send_response(http::Response::new(()), true));
        let second = ok(ok(beside(&mut other, second).await));
        assert_eq!(second.status(), 200);
        drop(app);
    });
}

#[test]
fn a_body_that_its_client_cancels_does_not_end() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        for reason in [h2::Reason::CANCEL, h2::Reason::NO_ERROR] {
            let tcp = rig.dial_out(SERVICE).await;
            let (mut client, driver) = ok(h2::client::handshake(tcp).await);
            tokio::spawn(driver);
            let post = ok(http::Request::post("http://cart/").body(()));
            let (_answer, mut body) = ok(client.send_request(post, false));
            ok(body.send_data(Bytes::from_static(b"hello"), false));
            let (tcp, _) = rig.accepted().await;
            let mut app = ok(h2::server::handshake(tcp).await);
            let (request, _respond) = next(&mut app).await;
            let mut got = request.into_body();
            let first = beside(&mut app, got.data()).await;
            assert_eq!(first.map(ok).as_deref(), Some(&b"hello"[..]));
            body.send_reset(reason);
            let rest = beside(&mut app, got.data()).await;
            assert!(matches!(rest, Some(Err(_))), "{reason} ended it: {rest:?}");
        }
    });
}

// SPDX-License-Identifier: Apache-2.0
//! What a gRPC client learns of an answer that broke off.

use bytes::Bytes;
use culvert_api::policy::InboundPolicy;
use http_body_util::{BodyExt as _, Empty};

use super::{
    http2::{App, beside, client, next},
    rig::mesh,
};
use crate::carry::tests::rig::{Rig, SERVICE, ok, rig};

/// How an application breaks an answer off.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cut {
    Connection,
    GoAway,
    Stream,
}

impl Cut {
    fn off(self, mut app: App, mut body: h2::SendStream<Bytes>) {
        match self {
            Self::Connection => return,
            Self::GoAway => app.abrupt_shutdown(h2::Reason::INTERNAL_ERROR),
            Self::Stream => body.send_reset(h2::Reason::ENHANCE_YOUR_CALM),
        }
        tokio::spawn(async move { while app.accept().await.is_some() {} });
    }
}

/// What comes after a first message, to a request of a type.
async fn rest(rig: &Rig, kind: &str, cut: Cut) -> Result<http::HeaderMap, h2::Reason> {
    let mut client = client(rig.dial_out(SERVICE).await).await;
    let asked = http::Request::post("http://cart/").header("content-type", kind);
    let asked = ok(asked.body(Empty::new()));
    let mut answer = tokio::spawn(client.send_request(asked));
    let (tcp, _) = tokio::select! {
        accepted = rig.accepted() => accepted,
        answered = &mut answer => panic!("{cut:?}: {answered:?}"),
    };
    let mut app = ok(h2::server::handshake(tcp).await);
    let (_, mut respond) = next(&mut app).await;
    let mut body = ok(respond.send_response(http::Response::new(()), false));
    ok(body.send_data(Bytes::from_static(b"hello"), false));
    let mut answer = ok(ok(beside(&mut app, answer).await)).into_body();
    let first = beside(&mut app, answer.frame()).await;
    assert!(matches!(first, Some(Ok(frame)) if frame.is_data()));
    drop(respond);
    cut.off(app, body);
    told(answer.frame().await)
}

/// What a client is told at last.
fn told(
    frame: Option<hyper::Result<http_body::Frame<Bytes>>>,
) -> Result<http::HeaderMap, h2::Reason> {
    match frame {
        Some(Ok(frame)) => {
            let trailers = frame.into_trailers();
            Ok(trailers.unwrap_or_else(|frame| panic!("not trailers, but {frame:?}")))
        }
        Some(Err(error)) => Err(reason(&error)),
        None => panic!("it looks whole"),
    }
}

fn reason(error: &hyper::Error) -> h2::Reason {
    let error = std::error::Error::source(error).and_then(|it| it.downcast_ref::<h2::Error>());
    let reason = error.and_then(h2::Error::reason);
    reason.unwrap_or_else(|| panic!("no reset: {error:?}"))
}

#[test]
fn an_answer_whose_connection_broke_ends_in_a_status() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        for cut in [Cut::Connection, Cut::GoAway] {
            let trailers = rest(&rig, "application/grpc+proto", cut).await;
            let trailers = trailers.unwrap_or_else(|reset| panic!("{cut:?}: {reset}"));
            assert_eq!(trailers["grpc-status"], "14", "{cut:?}");
            assert_eq!(trailers["grpc-message"], "connection broken");
        }
    });
}

#[test]
fn a_reset_of_the_server_is_passed_on() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let reset = rest(&rig, "application/grpc", Cut::Stream).await;
        assert_eq!(reset.err(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    });
}

#[test]
fn what_is_not_grpc_is_reset() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        for cut in [Cut::Connection, Cut::GoAway, Cut::Stream] {
            assert!(rest(&rig, "text/plain", cut).await.is_err(), "{cut:?}");
        }
    });
}

// SPDX-License-Identifier: Apache-2.0
//! What hyper finds wrong with a client, told from its errors: what they say is nowhere promised.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use http::Request;
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf, duplex},
    sync::mpsc,
};

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What a server made of what a client said, and of the body of its request.
struct Found {
    ended: Option<Cause>,
    body: Option<Cause>,
}

/// Serves what a client says before it hangs up.
async fn serve(http2: bool, said: &[u8]) -> anyhow::Result<Found> {
    let (mut client, server) = duplex(1 << 20);
    let (tell, mut hear) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            let read = request.into_body().collect().await;
            let _ = tell.send(read.err().map(|error| Cause::of_body(&error)));
            Ok::<_, Infallible>(Response::new(ProxyBody::new()))
        }
    });
    client.write_all(said).await?;
    client.shutdown().await?;
    let server = TokioIo::new(server);
    let served = if http2 {
        let builder = http2::Builder::new(TokioExecutor::new());
        builder.serve_connection(server, service).await
    } else {
        let mut builder = http1::Builder::new();
        builder.half_close(true).max_header_size(8 << 10);
        builder.serve_connection(server, service).await
    };
    Ok(Found {
        ended: served.err().as_ref().and_then(Cause::of_server),
        body: hear.try_recv().unwrap_or_default(),
    })
}

#[tokio::test]
async fn what_is_wrong_with_a_head_is_told() -> anyhow::Result<()> {
    let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(9 << 10));
    for (said, found) in [
        ("GET / HTTP/1.1\r\n\r\n", None),
        ("GET / HTTP/1.1\r\n", None),
        ("GET / HTTP/1.1\r\nA : b\r\n\r\n", Some(Cause::BadRequest)),
        (
            "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            Some(Cause::BadRequest),
        ),
        (&long, Some(Cause::HeadTooLarge)),
    ] {
        let ended = serve(false, said.as_bytes()).await?.ended;
        assert_eq!(ended, found, "{:?}", &said[..said.len().min(40)]);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_frames_is_told() -> anyhow::Result<()> {
    let empty = b"\0\0\0\x09\0\0\0\0\x01".repeat(1000);
    let begun = b"\0\0\0\x01\0\0\0\0\x01";
    for (said, found) in [
        (Vec::new(), None),
        (b"\0\0\x01\0\0\0\0\0\0x".to_vec(), Some(Cause::BadRequest)),
        ([&begun[..], &empty].concat(), Some(Cause::Flood)),
    ] {
        let said = [PREFACE, &said].concat();
        let ended = serve(true, &said).await?.ended;
        assert_eq!(
            ended,
            found,
            "{:?}",
            &said[PREFACE.len()..said.len().min(60)]
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_malformed_is_not_one_that_broke_off() -> anyhow::Result<()> {
    for (rest, found) in [
        ("5\r\nhello\r\n0\r\n\r\n", None),
        ("five", Some(Cause::BadRequest)),
        ("5\r\nhelloXX", Some(Cause::BadRequest)),
        ("0\r\nX\r\n\r\n", Some(Cause::BadRequest)),
        ("5\r\nhel", Some(Cause::Io)),
    ] {
        let said = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
        assert_eq!(serve(false, said.as_bytes()).await?.body, found, "{rest:?}");
    }
    Ok(())
}

/// A connection on which reading fails in the middle of a head.
async fn failing(error: io::Error) -> Option<Cause> {
    let reader = b"GET".chain(Failing(Some(error)));
    let io = tokio::io::join(reader, tokio::io::sink());
    let service = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(ProxyBody::new()))
    });
    let served = http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .await;
    served.err().as_ref().and_then(Cause::of_server)
}

struct Failing(Option<io::Error>);

impl AsyncRead for Failing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.take().map_or(Ok(()), Err))
    }
}

#[tokio::test]
async fn a_head_that_is_late_is_not_a_peer_that_is_gone() {
    let late = failing(io::ErrorKind::TimedOut.into()).await;
    assert_eq!(late, Some(Cause::HeadTimeout));
    let gone = failing(io::Error::from_raw_os_error(nix::libc::ETIMEDOUT)).await;
    assert_eq!(gone, None);
}

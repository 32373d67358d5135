// SPDX-License-Identifier: Apache-2.0
//! Messages as they are on the wire.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::carry::tests::rig::{MESHED, Rig, ok, read_to_end};

pub(super) const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n";
pub(super) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Both pods are meshed, and the service is `cart`.
pub(super) async fn mesh(rig: &Rig) {
    rig.credentials(&rig.web).await;
    rig.credentials(&rig.cart).await;
    rig.resolve(&[(MESHED, &rig.cart.identity, true)]);
    rig.serve_inbound().await;
}

/// The next head, in lower case but for its first line.
pub(super) async fn head(tcp: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(5), tcp.read_u8()).await;
        let byte = byte.unwrap_or_else(|_| panic!("no head, but {head:?}"));
        head.push(
            byte.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&head))),
        );
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    match head.split_once("\r\n") {
        Some((line, fields)) => format!("{line}\r\n{}", fields.to_lowercase()),
        None => head,
    }
}

pub(super) async fn status(tcp: &mut TcpStream) -> u16 {
    let head = head(tcp).await;
    let status = head.split(' ').nth(1).unwrap_or_default();
    status.parse().unwrap_or_else(|e| panic!("{e} in {head}"))
}

pub(super) async fn answer(app: &mut TcpStream, answer: &[u8]) {
    ok(app.write_all(answer).await);
}

/// Asserts that [`OK`] came.
pub(super) async fn assert_answered(client: &mut TcpStream) {
    assert_eq!(status(client).await, 200);
    assert_reads(client, b"hello").await;
}

pub(super) async fn assert_reads(tcp: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    let read = timeout(Duration::from_secs(5), tcp.read_exact(&mut got)).await;
    ok(ok(read));
    assert_eq!(
        String::from_utf8_lossy(&got),
        String::from_utf8_lossy(expected)
    );
}

/// A request and its answer, over connections that stand.
pub(super) async fn exchange(client: &mut TcpStream, app: &mut TcpStream) {
    ok(client.write_all(GET).await);
    head(app).await;
    answer(app, OK).await;
    assert_answered(client).await;
}

/// Asserts that the connection ends with RST, whatever came before.
pub(super) async fn assert_resets(tcp: &mut TcpStream) -> Vec<u8> {
    let (bytes, end) = read_to_end(tcp).await;
    let text = String::from_utf8_lossy(&bytes);
    assert!(end.is_err(), "it ended in order after {text:?}");
    bytes
}

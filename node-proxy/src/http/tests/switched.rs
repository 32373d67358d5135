// SPDX-License-Identifier: Apache-2.0
//! Connections that stop being HTTP.

use culvert_api::policy::InboundPolicy;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::rig::{answer, assert_reads, head, mesh, status};
use crate::carry::tests::rig::{Rig, SERVICE, assert_echo, ok, read_to_end, rig};

/// What both sides say behind their heads without a pause is theirs.
pub(super) async fn upgrade(rig: &Rig, client: &mut TcpStream) -> (TcpStream, String) {
    let ask = b"GET / HTTP/1.1\r\nHost: cart\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
    ok(client.write_all(ask).await);
    let (mut app, _) = rig.accepted().await;
    let asked = head(&mut app).await;
    let agree = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst";
    answer(&mut app, agree).await;
    assert_eq!(status(client).await, 101);
    assert_reads(client, b"first").await;
    assert_reads(&mut app, b"early").await;
    assert_echo(client, &mut app).await;
    (app, asked)
}

#[test]
fn an_upgrade_becomes_bytes_and_ends_one_direction_at_a_time() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = rig.dial_out(SERVICE).await;
        let (mut app, asked) = upgrade(&rig, &mut client).await;
        assert!(asked.contains("upgrade: websocket\r\n"), "{asked}");
        ok(client.shutdown().await);
        assert!(read_to_end(&mut app).await.1.is_ok());
        ok(app.write_all(b"last").await);
        ok(app.shutdown().await);
        let (bytes, end) = read_to_end(&mut client).await;
        assert!(bytes == b"last" && end.is_ok(), "{bytes:?}, {end:?}");
    });
}

#[test]
fn a_tunnel_is_bytes() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = rig.dial_out(SERVICE).await;
        ok(client
            .write_all(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n")
            .await);
        let (mut app, _) = rig.accepted().await;
        assert!(head(&mut app).await.starts_with("CONNECT db:5432 "));
        answer(&mut app, b"HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(status(&mut client).await, 200);
        assert_echo(&mut client, &mut app).await;
        drop(app);
        assert!(read_to_end(&mut client).await.0.is_empty());
    });
}

#[test]
fn an_upgrade_that_is_refused_leaves_http() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = rig.dial_out(SERVICE).await;
        let ask = b"GET / HTTP/1.1\r\nHost: cart\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
        ok(client.write_all(ask).await);
        let (mut app, _) = rig.accepted().await;
        let asked = head(&mut app).await;
        assert!(
            !asked.contains("upgrade") && !asked.contains("settings"),
            "{asked}"
        );
        answer(&mut app, super::rig::OK).await;
        super::rig::assert_answered(&mut client).await;
        super::rig::exchange(&mut client, &mut app).await;
    });
}

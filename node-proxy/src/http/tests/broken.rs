// SPDX-License-Identifier: Apache-2.0
//! No part of a message passes for the whole.

use culvert_api::policy::InboundPolicy;
use tokio::io::AsyncWriteExt;

use super::rig::{
    GET, OK, answer, assert_answered, assert_reads, assert_resets, head, mesh, status,
};
use crate::{
    carry::tests::rig::{SERVICE, ok, read_to_end, rig},
    tcp,
};

/// How an application breaks off: what it says, and whether it resets.
const CUT: [(&[u8], bool); 4] = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", false),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        false,
    ),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", true),
    (b"HTTP/1.0 200 OK\r\n\r\nhello", true),
];

#[test]
fn an_answer_that_broke_off_does_not_end_in_order() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        for version in ["1.0", "1.1"] {
            for (cut, resets) in CUT {
                let mut client = rig.dial_out(SERVICE).await;
                let asked = format!("GET / HTTP/{version}\r\nHost: cart\r\n\r\n");
                ok(client.write_all(asked.as_bytes()).await);
                let (mut app, _) = rig.accepted().await;
                head(&mut app).await;
                answer(&mut app, cut).await;
                assert_eq!(status(&mut client).await, 200);
                if resets {
                    tcp::drained(&app).await;
                    tcp::reset(app);
                } else {
                    drop(app);
                }
                assert_resets(&mut client).await;
            }
        }
    });
}

#[test]
fn an_answer_without_a_length_ends_as_a_whole() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        for version in ["1.0", "1.1"] {
            let mut client = rig.dial_out(SERVICE).await;
            let asked = format!("GET / HTTP/{version}\r\nHost: cart\r\nConnection: close\r\n\r\n");
            ok(client.write_all(asked.as_bytes()).await);
            let (mut app, _) = rig.accepted().await;
            head(&mut app).await;
            answer(&mut app, b"HTTP/1.0 200 OK\r\n\r\nhello").await;
            drop(app);
            assert_eq!(status(&mut client).await, 200);
            let (bytes, end) = read_to_end(&mut client).await;
            let body = String::from_utf8_lossy(&bytes);
            assert!(body.contains("hello") && end.is_ok(), "{body}, {end:?}");
        }
    });
}

#[test]
fn a_body_that_its_client_did_not_end_does_not_end() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        for resets in [true, false] {
            let mut client = rig.dial_out(SERVICE).await;
            let post = b"POST / HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
            ok(client.write_all(post).await);
            let (mut app, _) = rig.accepted().await;
            head(&mut app).await;
            assert_reads(&mut app, b"5\r\nhello\r\n").await;
            if resets {
                tcp::reset(client);
            } else {
                drop(client);
            }
            assert!(assert_resets(&mut app).await.is_empty());
        }
    });
}

#[test]
fn a_body_waits_for_an_application_that_wants_it() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let post = b"POST / HTTP/1.1\r\nHost: cart\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut client = rig.dial_out(SERVICE).await;
        ok(client.write_all(post).await);
        let (mut app, _) = rig.accepted().await;
        assert!(head(&mut app).await.contains("expect: 100-continue"));
        answer(&mut app, b"HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(status(&mut client).await, 100);
        ok(client.write_all(b"5\r\nhello\r\n0\r\n\r\n").await);
        assert_reads(&mut app, b"5\r\nhello\r\n0\r\n\r\n").await;
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;

        ok(client.write_all(post).await);
        head(&mut app).await;
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;
        assert!(
            read_to_end(&mut app).await.0.is_empty(),
            "an empty body was sent"
        );
        drop(client);
        let mut client = rig.dial_out(SERVICE).await;
        ok(client.write_all(GET).await);
        let (mut app, _) = rig.accepted().await;
        head(&mut app).await;
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;
    });
}

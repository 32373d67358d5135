// SPDX-License-Identifier: Apache-2.0
//! `l5d-require-id`.

use culvert_api::policy::InboundPolicy;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    http2::client,
    rig::{OK, answer, assert_answered, head, mesh},
};
use crate::carry::tests::rig::{APP, Rig, SERVICE, ok, read_to_end, rig};

const ERRORS: &str = "outbound_http_errors_total";
const REFUSED: &str = "l5d-proxy-error: server has not the required identity\r\n";

async fn ask(rig: &Rig, ids: &[&str]) -> TcpStream {
    let fields = ids.iter().map(|id| format!("L5D-Require-Id: {id}\r\n"));
    let fields: String = fields.collect();
    let mut client = rig.dial_out(SERVICE).await;
    let asked = format!("GET / HTTP/1.1\r\nHost: cart\r\n{fields}\r\n");
    ok(client.write_all(asked.as_bytes()).await);
    client
}

async fn assert_refused(rig: &Rig, ids: &[&str]) {
    let mut client = ask(rig, ids).await;
    let (bytes, end) = read_to_end(&mut client).await;
    let said = String::from_utf8_lossy(&bytes);
    let refused = said.starts_with("HTTP/1.1 502 ") && said.contains(REFUSED);
    assert!(refused && end.is_ok(), "{ids:?}: {said}, {end:?}");
}

#[test]
fn a_server_has_the_identity_that_a_request_requires() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let domain = &rig.fixture.proxy.domain;
        let name = |of| domain.server_name(of);
        let (cart, web) = (name(&rig.cart.identity), name(&rig.web.identity));
        assert_refused(&rig, &[&web]).await;
        assert_refused(&rig, &[&cart, &web]).await;
        assert_refused(&rig, &["?"]).await;
        assert!(rig.is_undisturbed().await, "it was sent all the same");
        rig.assert_metric(ERRORS, &[("error", "identity required")], 3);

        let mut client = ask(&rig, &[&cart, &rig.cart.identity.to_string()]).await;
        let (mut app, _) = rig.accepted().await;
        let asked = head(&mut app).await;
        assert!(!asked.contains("l5d-require-id"), "{asked}");
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;
        // Nor on a connection that is open already.
        assert_refused(&rig, &[&web]).await;
    });
}

#[test]
fn who_is_not_meshed_has_no_identity() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        rig.resolve(&[(APP, &rig.cart.identity, false)]);
        let name = rig.fixture.proxy.domain.server_name(&rig.cart.identity);
        assert_refused(&rig, &[&name]).await;
        rig.answer_unknown(SERVICE);
        assert_refused(&rig, &[&name]).await;
        assert!(rig.is_undisturbed().await, "it was sent all the same");
    });
}

#[test]
fn grpc_is_told_by_its_status() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = client(rig.dial_out(SERVICE).await).await;
        let asked = http::Request::post("http://cart/")
            .header("content-type", "application/grpc")
            .header("l5d-require-id", "somebody");
        let asked = ok(asked.body(http_body_util::Empty::new()));
        let response = ok(client.send_request(asked).await);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert!(rig.is_undisturbed().await, "it was sent all the same");
    });
}

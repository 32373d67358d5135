// SPDX-License-Identifier: Apache-2.0
//! Requests from application to application, over real sockets, through the proxies of both.

mod broken;
mod draining;
mod grpc;
mod http2;
mod required;
mod rig;
mod switched;

use culvert_api::policy::InboundPolicy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use self::rig::{GET, OK, answer, assert_answered, assert_resets, exchange, head, mesh, status};
use crate::carry::tests::rig::{APP, DEAD, MESHED, SERVICE, assert_reset, ok, read_to_end, rig};

/// Another endpoint of the service.
const OTHER: &str = "10.1.0.2:8081";

#[test]
fn requests_of_many_connections_share_one_and_name_their_client() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = rig.dial_out(SERVICE).await;
        ok(client
            .write_all(b"GET / HTTP/1.1\r\nHost: cart\r\nl5d-client-id: root\r\n\r\n")
            .await);
        let (mut app, from) = rig.accepted().await;
        let asked = head(&mut app).await;
        let name = rig.fixture.proxy.domain.server_name(&rig.web.identity);
        assert!(
            asked.contains(&format!("l5d-client-id: {name}\r\n")),
            "{asked}"
        );
        assert!(!asked.contains("root"), "{asked}");
        assert_eq!(from.ip(), ok(client.local_addr()).ip());
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;
        for _ in 0..3 {
            let mut other = rig.dial_out(SERVICE).await;
            exchange(&mut other, &mut app).await;
            exchange(&mut client, &mut app).await;
        }
        assert!(rig.is_undisturbed().await, "another connection was dialled");
    });
}

#[test]
fn what_is_idempotent_is_sent_again_when_a_connection_that_rested_breaks() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = rig.dial_out(SERVICE).await;
        ok(client.write_all(GET).await);
        let (mut app, _) = rig.accepted().await;
        head(&mut app).await;
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;

        ok(client.write_all(GET).await);
        head(&mut app).await;
        drop(app);
        let (mut app, _) = rig.accepted().await;
        assert!(head(&mut app).await.starts_with("GET / "));
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;

        let post = b"POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: 0\r\n\r\n";
        ok(client.write_all(post).await);
        head(&mut app).await;
        drop(app);
        assert_eq!(status(&mut client).await, 502);
        assert!(rig.is_undisturbed().await, "a POST was sent twice");
    });
}

#[test]
fn what_no_application_has_got_is_sent_elsewhere() {
    rig(InboundPolicy::strict(), async |mut rig| {
        mesh(&rig).await;
        // The application of the meshed endpoint refuses.
        rig.app = ok(TcpListener::bind(OTHER).await);
        let cart = &rig.cart.identity;
        rig.resolve(&[
            (MESHED, cart, true),
            (DEAD, cart, false),
            (OTHER, cart, false),
        ]);
        let mut client = rig.dial_out(SERVICE).await;
        ok(client.write_all(GET).await);
        let (mut app, _) = rig.accepted().await;
        head(&mut app).await;
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;
        for _ in 0..20 {
            exchange(&mut client, &mut app).await;
        }
    });
}

#[test]
fn a_connection_that_was_authenticated_stays_with_its_client() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let other = ok(TcpListener::bind(OTHER).await);
        let cart = &rig.cart.identity;
        rig.resolve(&[(MESHED, cart, true), (OTHER, cart, false)]);
        let mut client = rig.dial_out(SERVICE).await;
        let ntlm = b"GET / HTTP/1.1\r\nHost: cart\r\nAuthorization: NTLM TlRM\r\n\r\n";
        ok(client.write_all(ntlm).await);
        let (mut app, _) = ok(tokio::select! {
            accepted = rig.app.accept() => accepted,
            accepted = other.accept() => accepted,
        });
        head(&mut app).await;
        answer(&mut app, OK).await;
        assert_answered(&mut client).await;
        // Nothing says so in these, but they are taken for the one who authenticated.
        for _ in 0..10 {
            exchange(&mut client, &mut app).await;
        }
        let mut another = rig.dial_out(SERVICE).await;
        ok(another.write_all(GET).await);
        let (mut fresh, _) = ok(tokio::select! {
            _ = app.read_u8() => panic!("it went where another client is authenticated"),
            accepted = rig.app.accept() => accepted,
            accepted = other.accept() => accepted,
        });
        head(&mut fresh).await;
        answer(&mut fresh, OK).await;
        assert_answered(&mut another).await;
    });
}

#[test]
fn a_policy_that_changes_ends_requests_and_tunnels() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.serve_inbound().await;
        let mut idle = rig.dial_in().await;
        ok(idle.write_all(GET).await);
        let (mut idle_app, _) = rig.accepted().await;
        head(&mut idle_app).await;
        answer(&mut idle_app, OK).await;
        assert_answered(&mut idle).await;
        let mut asking = rig.dial_in().await;
        ok(asking.write_all(GET).await);
        let (mut asked, _) = rig.accepted().await;
        head(&mut asked).await;
        let mut tunnel = rig.dial_in().await;
        let (mut tunnelled, _) = switched::upgrade(&rig, &mut tunnel).await;
        rig.cart.enforce(&InboundPolicy::strict().into());
        assert_reset(&mut idle).await;
        assert_reset(&mut asking).await;
        assert_reset(&mut tunnel).await;
        assert_resets(&mut tunnelled).await;
        // What was asked had come as a whole: it is enough that nothing waits for the answer.
        assert!(read_to_end(&mut asked).await.0.is_empty());
        let ended = [("authz_name", "all-authenticated"), ("tls", "no_identity")];
        rig.assert_metric("inbound_tcp_authz_terminate_total", &ended, 3);
    });
}

#[test]
fn a_proxy_that_drains_answers_what_was_asked_and_closes() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut idle = rig.dial_out(SERVICE).await;
        ok(idle.write_all(GET).await);
        let (mut app, _) = rig.accepted().await;
        head(&mut app).await;
        answer(&mut app, OK).await;
        assert_answered(&mut idle).await;
        let mut asking = rig.dial_out(SERVICE).await;
        ok(asking.write_all(GET).await);
        head(&mut app).await;
        rig.fixture.proxy.draining.send_replace(true);
        assert!(matches!(read_to_end(&mut idle).await, (bytes, Ok(_)) if bytes.is_empty()));
        answer(&mut app, OK).await;
        let (answered, end) = read_to_end(&mut asking).await;
        let answered = String::from_utf8_lossy(&answered).to_lowercase();
        assert!(answered.contains("connection: close") && answered.ends_with("hello"));
        assert!(end.is_ok(), "{end:?}");
    });
}

#[test]
fn a_late_request_goes_on_the_connection_that_was_dialled_already() {
    rig(InboundPolicy::strict(), async |rig| {
        mesh(&rig).await;
        let mut client = rig.dial_out(SERVICE).await;
        let (mut app, _) = rig.accepted().await;
        exchange(&mut client, &mut app).await;
        let mut other = rig.dial_out(SERVICE).await;
        ok(other.write_all(GET).await);
        head(&mut app).await;
        answer(&mut app, OK).await;
        assert_answered(&mut other).await;
        assert!(rig.is_undisturbed().await);
    });
}

#[test]
fn who_is_not_meshed_says_of_nobody_who_it_is() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.serve_inbound().await;
        let mut client = rig.dial_in().await;
        let forged =
            b"GET / HTTP/1.1\r\nHost: cart\r\nL5D-Client-Id: root\r\nl5d_client_id: root\r\n\
            Connection: l5d-client-id\r\n\r\n";
        ok(client.write_all(forged).await);
        let (mut app, _) = rig.accepted().await;
        let asked = head(&mut app).await;
        assert!(!asked.contains("l5d"), "{asked}");
        assert_eq!(ok(app.peer_addr()).ip(), ok(client.local_addr()).ip());
        assert_eq!(ok(app.local_addr()).to_string(), APP);
    });
}

// SPDX-License-Identifier: Apache-2.0
//! The data path from accept to the end, on real sockets and with a real certificate authority.

pub(crate) mod rig;

use std::time::Duration;

use culvert_api::policy::InboundPolicy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use self::rig::{
    APP, DEAD, MESHED, SERVICE, SILENT, assert_echo, assert_reset, client_hello, ok, read_to_end,
    rig,
};
use crate::{fixture::eventually, outbound, tcp};

const INBOUND: &str = "inbound_tcp_errors_total";
const OUTBOUND: &str = "outbound_tcp_errors_total";

#[test]
fn meshed_pods_speak_mutual_tls_and_the_application_sees_its_client() {
    rig(InboundPolicy::strict(), async |rig| {
        let (web, cart) = (rig.web.identity.to_string(), rig.cart.identity.to_string());
        rig.credentials(&rig.web).await;
        rig.credentials(&rig.cart).await;
        rig.resolve(&[(MESHED, &rig.cart.identity, true)]);
        rig.serve_inbound().await;
        for _ in 0..3 {
            let mut client = rig.dial_out(SERVICE).await;
            let (mut app, from) = rig.accepted().await;
            assert_eq!(from.ip(), ok(client.local_addr()).ip());
            assert_echo(&mut client, &mut app).await;
            ok(client.shutdown().await);
            assert!(read_to_end(&mut app).await.1.is_ok());
            ok(app.shutdown().await);
            assert!(read_to_end(&mut client).await.1.is_ok());
        }
        let open = || [&rig.web, &rig.cart].map(|pod| pod.metrics().open_connections());
        eventually("all ended", || open() == [0, 0]).await;
        let src = [
            ("peer", "src"),
            ("tls", "true"),
            ("client_id", web.as_str()),
            ("pod", "cart-1"),
        ];
        rig.assert_metric("tcp_open_total", &src, 3);
        rig.assert_metric("tcp_open_connections", &src, 0);
        rig.assert_metric("tcp_read_bytes_total", &src, 15);
        let dst = [
            ("peer", "dst"),
            ("tls", "true"),
            ("server_id", cart.as_str()),
            ("pod", "web-1"),
        ];
        rig.assert_metric("tcp_open_total", &dst, 3);
        rig.assert_metric("tcp_write_bytes_total", &dst, 15);
        let service = [
            ("dst_service", "cart"),
            ("dst_pod", "cart-1"),
            ("errno", ""),
        ];
        rig.assert_metric("tcp_close_total", &service, 3);
        let allowed = [
            ("authz_name", "all-authenticated"),
            ("client_id", web.as_str()),
        ];
        rig.assert_metric("inbound_tcp_authz_allow_total", &allowed, 3);
    });
}

#[test]
fn a_silent_client_of_a_permissive_pod_is_not_waited_for() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.serve_inbound().await;
        let mut client = rig.dial_in().await;
        let (mut app, from) = rig.accepted().await;
        assert_eq!(from.ip(), ok(client.local_addr()).ip());
        ok(app.write_all(b"220 ready").await);
        let mut got = [0; 9];
        ok(client.read_exact(&mut got).await);
        assert_echo(&mut client, &mut app).await;
        rig.assert_metric(
            "tcp_open_total",
            &[("peer", "src"), ("tls", "no_identity")],
            1,
        );
    });
}

#[test]
fn a_strict_pod_takes_neither_plaintext_nor_foreign_tls_nor_silence() {
    rig(InboundPolicy::strict(), async |rig| {
        rig.serve_inbound().await;
        let own = rig.fixture.proxy.domain.server_name(&rig.cart.identity);
        let other = rig.fixture.proxy.domain.server_name(&rig.web.identity);
        let firsts = [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            client_hello("example.org", b"h2"),
            client_hello(&own, b"h2"),
            client_hello(&other, b"culvert/tcp"),
        ];
        for first in firsts {
            let mut client = rig.dial_in().await;
            ok(client.write_all(&first).await);
            assert_reset(&mut client).await;
        }
        rig.assert_metric(INBOUND, &[("error", "identity required")], 4);
        let mut silent = rig.dial_in().await;
        assert_reset(&mut silent).await;
        rig.assert_metric(INBOUND, &[("error", "tls detection timeout")], 1);
        assert!(rig.is_undisturbed().await);
    });
}

#[test]
fn a_permissive_pod_relays_foreign_tls_unchanged_and_never_the_meshs() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.credentials(&rig.cart).await;
        rig.serve_inbound().await;
        let hello = client_hello("example.org", b"h2");
        let mut client = rig.dial_in().await;
        for byte in &hello {
            ok(client.write_all(&[*byte]).await);
        }
        let (mut app, _) = rig.accepted().await;
        let mut got = vec![0; hello.len()];
        ok(app.read_exact(&mut got).await);
        assert_eq!(got, hello);

        let own = rig.fixture.proxy.domain.server_name(&rig.cart.identity);
        let other = rig.fixture.proxy.domain.server_name(&rig.web.identity);
        const UNRECOGNIZED_NAME: u8 = 112;
        const NO_APPLICATION_PROTOCOL: u8 = 120;
        let refused = [
            (client_hello(&other, b"culvert/tcp"), UNRECOGNIZED_NAME),
            (client_hello(&own, b"h2"), NO_APPLICATION_PROTOCOL),
            (
                client_hello(&own, b"culvert/of-tomorrow"),
                NO_APPLICATION_PROTOCOL,
            ),
        ];
        for (hello, alert) in refused {
            let mut client = rig.dial_in().await;
            ok(client.write_all(&hello).await);
            let (got, _) = read_to_end(&mut client).await;
            assert_eq!(got, [0x15, 3, 3, 0, 2, 2, alert]);
        }
        rig.assert_metric(INBOUND, &[("error", "unrecognized name")], 1);
        assert!(rig.is_undisturbed().await);
    });
}

#[test]
fn a_client_hello_that_is_late_is_judged_all_the_same() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.credentials(&rig.cart).await;
        rig.serve_inbound().await;
        let own = rig.fixture.proxy.domain.server_name(&rig.cart.identity);
        let mut peer = rig.dial_in().await;
        let (mut app, _) = rig.accepted().await;
        ok(peer.write_all(&client_hello(&own, b"culvert/tcp")).await);
        assert_eq!(ok(peer.read_u8().await), 0x16, "not the server's flight");
        assert!(
            read_to_end(&mut app).await.0.is_empty(),
            "a mesh ClientHello was relayed"
        );

        let hello = client_hello("example.org", b"h2");
        let mut client = rig.dial_in().await;
        let (mut app, _) = rig.accepted().await;
        ok(client.write_all(&hello).await);
        let mut got = vec![0; hello.len()];
        ok(app.read_exact(&mut got).await);
        assert_eq!(got, hello);
    });
}

#[test]
fn a_client_without_a_certificate_never_reaches_the_application() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.credentials(&rig.cart).await;
        rig.serve_inbound().await;
        let own = rig.fixture.proxy.domain.server_name(&rig.cart.identity);
        let mut client = rig.dial_in().await;
        ok(client.write_all(&client_hello(&own, b"culvert/tcp")).await);
        // The server's flight comes, and then nothing that this client could answer.
        let _ = read_to_end(&mut client).await;
        rig.assert_metric(INBOUND, &[("error", "tls")], 1);
        assert!(rig.is_undisturbed().await);
    });
}

#[test]
fn a_policy_that_changes_ends_what_it_no_longer_lets_in() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.credentials(&rig.web).await;
        rig.credentials(&rig.cart).await;
        rig.resolve(&[(MESHED, &rig.cart.identity, true)]);
        rig.serve_inbound().await;
        let mut plain = rig.dial_in().await;
        let (mut plain_app, _) = rig.accepted().await;
        let mut meshed = rig.dial_out(SERVICE).await;
        let (mut meshed_app, _) = rig.accepted().await;
        assert_echo(&mut plain, &mut plain_app).await;
        rig.cart.enforce(&InboundPolicy::strict().into());
        assert_reset(&mut plain).await;
        assert_reset(&mut plain_app).await;
        assert_echo(&mut meshed, &mut meshed_app).await;
        let terminated = [("authz_name", "all-authenticated"), ("tls", "no_identity")];
        rig.assert_metric("inbound_tcp_authz_terminate_total", &terminated, 1);
    });
}

#[test]
fn an_application_that_refuses_is_refused_to_the_client() {
    rig(InboundPolicy::permissive(), async |mut rig| {
        rig.serve_inbound().await;
        rig.app = ok(TcpListener::bind("10.1.0.2:0").await);
        let mut client = rig.dial_in().await;
        assert_reset(&mut client).await;
        rig.assert_metric(INBOUND, &[("error", "i/o")], 1);
    });
}

#[test]
fn another_endpoint_is_tried_when_one_does_not_answer() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.resolve(&[
            (DEAD, &rig.cart.identity, false),
            (APP, &rig.cart.identity, false),
        ]);
        for _ in 0..20 {
            let mut client = rig.dial_out(SERVICE).await;
            let (mut app, _) = rig.accepted().await;
            assert_echo(&mut client, &mut app).await;
        }
        rig.resolve(&[(DEAD, &rig.cart.identity, false)]);
        let mut client = rig.dial_out(SERVICE).await;
        assert_reset(&mut client).await;
        rig.assert_metric(OUTBOUND, &[("error", "i/o")], 1);
    });
}

#[test]
fn nothing_is_dialled_for_an_application_that_gave_up() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.resolve(&SILENT.map(|at| (at, &rig.cart.identity, false)));
        for dst in [SERVICE, "10.96.0.77:80"] {
            let (client, accepted) = rig.out(dst).await;
            tcp::reset(client);
            let handled = outbound::handle(accepted);
            let handled = tokio::time::timeout(Duration::from_secs(2), handled).await;
            assert!(handled.is_ok(), "{dst} was dialled to the time-out");
        }
        let (client, accepted) = rig.out(SERVICE).await;
        let handled = tokio::spawn(outbound::handle(accepted));
        eventually("it is dialled", is_anything_dialled).await;
        tcp::reset(client);
        ok(ok(
            tokio::time::timeout(Duration::from_secs(2), handled).await
        ));
        eventually("it is dialled no more", || !is_anything_dialled()).await;
        rig.assert_metric(OUTBOUND, &[("error", "i/o")], 3);
    });
}

#[test]
fn who_has_said_its_last_before_its_connection_stands_is_served() {
    rig(InboundPolicy::permissive(), async |rig| {
        let (mut client, accepted) = rig.out(APP).await;
        ok(client.write_all(b"hello").await);
        ok(client.shutdown().await);
        let handled = tokio::spawn(outbound::handle(accepted));
        let asked = || !rig.fixture.proxy.destinations.in_use().is_empty();
        eventually("control is asked", asked).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!handled.is_finished());
        rig.answer_unknown(APP);
        let (mut app, _) = rig.accepted().await;
        assert_eq!(read_to_end(&mut app).await.0, b"hello");
        ok(app.write_all(b"world").await);
        ok(app.shutdown().await);
        assert_eq!(read_to_end(&mut client).await.0, b"world");
    });
}

#[test]
fn a_meshed_endpoint_is_never_dialled_in_plaintext() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.credentials(&rig.web).await;
        rig.resolve(&[(APP, &rig.cart.identity, true)]);
        let mut client = rig.dial_out(SERVICE).await;
        ok(client.write_all(b"secret").await);
        for _ in 0..2 {
            let (mut app, _) = rig.accepted().await;
            ok(app.write_all(b"HTTP/1.1 400 Bad Request\r\n").await);
            let (got, _) = read_to_end(&mut app).await;
            assert!(got.starts_with(&[0x16, 3]) && !contains(&got, b"secret"));
        }
        assert_reset(&mut client).await;
        rig.assert_metric(OUTBOUND, &[("error", "not tls")], 2);
        assert!(rig.is_undisturbed().await);
    });
}

#[test]
fn another_identity_than_the_endpoints_is_refused() {
    rig(InboundPolicy::permissive(), async |rig| {
        rig.credentials(&rig.web).await;
        rig.credentials(&rig.cart).await;
        rig.serve_inbound().await;
        rig.resolve(&[(MESHED, &rig.web.identity, true)]);
        let mut client = rig.dial_out(SERVICE).await;
        assert_reset(&mut client).await;
        rig.assert_metric(OUTBOUND, &[("error", "tls"), ("pod", "web-1")], 1);
        rig.assert_metric(
            INBOUND,
            &[("error", "unrecognized name"), ("pod", "cart-1")],
            1,
        );
        assert!(rig.is_undisturbed().await);
    });
}

#[test]
fn what_would_come_back_and_what_is_unknown_is_refused() {
    rig(InboundPolicy::permissive(), async |rig| {
        let mut client = rig.dial_out("127.0.0.1:80").await;
        assert_reset(&mut client).await;
        rig.assert_metric(OUTBOUND, &[("error", "gateway loop")], 1);
        let mut client = rig.dial_out("10.96.0.77:80").await;
        assert_reset(&mut client).await;
        rig.assert_metric(OUTBOUND, &[("error", "unresolved")], 1);
    });
}

#[tokio::test]
async fn what_is_revoked_moves_nothing_any_more() {
    use std::future::{pending, ready};
    assert_eq!(super::unless(ready(()), ready(1)).await, None);
    assert_eq!(super::unless(pending(), ready(1)).await, Some(1));
}

/// Whether a socket of this thread's namespace is in SYN_SENT (proc_net_tcp(5)).
fn is_anything_dialled() -> bool {
    let sockets = ok(std::fs::read_to_string("/proc/thread-self/net/tcp"));
    let mut states = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    states.any(|state| state == "02")
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

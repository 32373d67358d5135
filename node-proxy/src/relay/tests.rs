// SPDX-License-Identifier: Apache-2.0
use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use super::*;
use crate::tls::{
    Handshaken, handshake,
    tests::{Authority, client_session, identity, server_session, sockets},
};

const HALF_OPEN: Duration = Duration::from_secs(60);

/// Two proxies between two applications.
struct Chain {
    client: TcpStream,
    server: TcpStream,
    relays: [JoinHandle<Relayed>; 2],
    meters: [Arc<Meters>; 2],
}

fn ok<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("{e:?}"))
}

fn meters() -> Meters {
    let meter = Meter::default;
    Meters {
        app: meter(),
        wire: meter(),
    }
}

fn clone(meters: &Meters) -> Meters {
    Meters {
        app: meters.app.clone(),
        wire: meters.wire.clone(),
    }
}

/// Both ends of a wire, with a session or without.
async fn wire(tls: bool) -> [(TcpStream, Option<Handshaken>); 2] {
    let (mut near, mut far) = sockets().await;
    if !tls {
        return [(near, None), (far, None)];
    }
    let authority = Authority::new();
    let (web, cart) = (authority.credentials("web"), authority.credentials("cart"));
    let client = client_session(&web, &identity("cart"));
    let server = server_session(&cart);
    let (near_done, far_done) = tokio::join!(
        handshake(client, &mut near, Vec::new()),
        handshake(server, &mut far, Vec::new())
    );
    [(near, Some(ok(near_done))), (far, Some(ok(far_done)))]
}

/// What the callers of [`relay`] do.
fn spawn(
    mut app: TcpStream,
    wire: (TcpStream, Option<Handshaken>),
    meters: Meters,
    half_open: Duration,
) -> JoinHandle<Relayed> {
    tokio::spawn(async move {
        let (mut wire, done) = wire;
        let (session, plain, sealed) = match done {
            Some(done) => (Some(done.session), done.plain, done.sealed),
            None => (None, Vec::new(), Vec::new()),
        };
        let ends = Ends {
            app: &mut app,
            wire: &mut wire,
            session,
            plain,
            sealed,
            early: Vec::new(),
            counted: false,
        };
        let relayed = relay(ends, meters, half_open).await;
        if relayed.end.is_err() {
            tcp::reset(app);
            tcp::reset(wire);
        }
        relayed
    })
}

async fn chain(tls: bool, half_open: Duration) -> Chain {
    let (client, near_app) = sockets().await;
    let (far_app, server) = sockets().await;
    let [near, far] = wire(tls).await;
    let meters = [Arc::new(meters()), Arc::new(meters())];
    let relays = [
        spawn(near_app, near, clone(&meters[0]), half_open),
        spawn(far_app, far, clone(&meters[1]), half_open),
    ];
    Chain {
        client,
        server,
        relays,
        meters,
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

async fn read_to_end(tcp: &mut TcpStream) -> (Vec<u8>, io::Result<usize>) {
    let mut bytes = Vec::new();
    let end = tcp.read_to_end(&mut bytes).await;
    (bytes, end)
}

fn is_reset(end: &io::Result<usize>) -> bool {
    matches!(end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn bulk_goes_both_ways_unchanged_and_is_counted() {
    for tls in [false, true] {
        let Chain {
            client,
            server,
            relays,
            meters,
        } = chain(tls, HALF_OPEN).await;
        let (there, back) = (pattern(5_000_003), pattern(3_000_001));
        let transfer = |tcp: TcpStream, send: Vec<u8>| async move {
            let (mut read, mut write) = tcp.into_split();
            let sender = tokio::spawn(async move {
                ok(write.write_all(&send).await);
                ok(write.shutdown().await);
            });
            let mut got = Vec::new();
            ok(read.read_to_end(&mut got).await);
            ok(sender.await);
            got
        };
        let (got_back, got_there) = tokio::join!(
            transfer(client, there.clone()),
            transfer(server, back.clone())
        );
        assert!(got_there == there && got_back == back, "tls: {tls}");
        for relay in relays {
            assert!(ok(relay.await).end.is_ok(), "tls: {tls}");
        }
        let counted = |meter: &Meter| (meter.read.get() as usize, meter.write.get() as usize);
        assert_eq!(counted(&meters[0].app), (there.len(), back.len()));
        assert_eq!(counted(&meters[0].wire), (back.len(), there.len()));
        assert_eq!(counted(&meters[1].app), (back.len(), there.len()));
        assert_eq!(counted(&meters[1].wire), (there.len(), back.len()));
    }
}

#[tokio::test]
async fn a_half_close_leaves_the_other_half_open() {
    for tls in [false, true] {
        let mut chain = chain(tls, HALF_OPEN).await;
        ok(chain.client.write_all(b"request").await);
        ok(chain.client.shutdown().await);
        let (request, end) = read_to_end(&mut chain.server).await;
        assert!(request == b"request" && end.is_ok());
        ok(chain.server.write_all(&pattern(300_000)).await);
        drop(chain.server);
        let (response, end) = read_to_end(&mut chain.client).await;
        assert!(response == pattern(300_000) && end.is_ok());
        for relay in chain.relays {
            assert!(ok(relay.await).end.is_ok());
        }
    }
}

#[tokio::test]
async fn a_reset_arrives_behind_what_was_sent_before_it() {
    for tls in [false, true] {
        let mut chain = chain(tls, HALF_OPEN).await;
        ok(chain.client.write_all(&pattern(200_000)).await);
        tcp::drained(&chain.client).await;
        // The proxy must have read it all, or the reset would overtake it before the mesh.
        while chain.meters[0].app.read.get() < 200_000 {
            tokio::task::yield_now().await;
        }
        tcp::reset(chain.client);
        let (got, end) = read_to_end(&mut chain.server).await;
        assert_eq!(got.len(), 200_000);
        assert!(is_reset(&end), "{end:?}");
        for relay in chain.relays {
            assert!(ok(relay.await).end.is_err());
        }
    }
}

#[tokio::test]
async fn a_server_that_resets_with_its_answer_is_heard() {
    for tls in [false, true] {
        let mut chain = chain(tls, HALF_OPEN).await;
        let (mut read, mut write) = chain.client.split();
        let mut answer = Vec::new();
        let client = async {
            // Whichever of the two sees the reset, the other is then told of a plain end.
            let send = async {
                loop {
                    if let Err(error) = write.write_all(&[0; 1000]).await {
                        return error.kind();
                    }
                }
            };
            let (sent, read) = tokio::join!(send, read.read_to_end(&mut answer));
            sent == io::ErrorKind::ConnectionReset || is_reset(&read)
        };
        let server = async {
            let mut some = [0; 1000];
            ok(chain.server.read_exact(&mut some).await);
            ok(chain.server.write_all(b"413 too large").await);
            while chain.meters[1].app.read.get() < 13 {
                tokio::task::yield_now().await;
            }
            tcp::reset(chain.server);
        };
        let (reset, ()) = tokio::join!(client, server);
        assert!(reset);
        assert_eq!(answer, b"413 too large");
    }
}

#[tokio::test]
async fn tls_that_is_cut_off_is_a_reset_for_the_application() {
    let (mut app, near_app) = sockets().await;
    let [near, (far, far_done)] = wire(true).await;
    let relay = spawn(near_app, near, meters(), HALF_OPEN);
    let mut session = far_done
        .map(|done| done.session)
        .unwrap_or_else(|| panic!("no TLS"));
    let mut out = vec![0; 100];
    let length = ok(session.seal(&mut [], b"half a", &mut out));
    let mut far = far;
    ok(far.write_all(out.get(..length).unwrap_or_default()).await);
    drop(far);
    let (got, end) = read_to_end(&mut app).await;
    assert!(got == b"half a" && is_reset(&end), "{end:?}");
    let end = ok(relay.await).end;
    assert!(
        matches!(end, Err(Broken::Truncated | Broken::Wire(_))),
        "{end:?}"
    );
}

#[tokio::test]
async fn a_forged_record_is_refused_with_an_alert_and_never_delivered() {
    let (mut app, near_app) = sockets().await;
    let [near, (mut far, far_done)] = wire(true).await;
    let relay = spawn(near_app, near, meters(), HALF_OPEN);
    let mut session = far_done
        .map(|done| done.session)
        .unwrap_or_else(|| panic!("no TLS"));
    let mut out = vec![0; 100];
    let length = ok(session.seal(&mut [], b"secret", &mut out));
    out[8] ^= 1;
    ok(far.write_all(out.get(..length).unwrap_or_default()).await);
    let (got, end) = read_to_end(&mut app).await;
    assert!(got.is_empty() && is_reset(&end), "{end:?}");
    let (mut sealed, _) = read_to_end(&mut far).await;
    let mut plain = vec![0; sealed.len()];
    let told = session.open(&mut sealed, &mut plain);
    assert!(
        matches!(told, Err(rustls::Error::AlertReceived(_))),
        "{told:?}"
    );
    assert!(matches!(ok(relay.await).end, Err(Broken::Tls(_))));
}

#[tokio::test]
async fn records_may_come_byte_by_byte() {
    let (mut app, near_app) = sockets().await;
    let [near, (mut far, far_done)] = wire(true).await;
    ok(far.set_nodelay(true));
    let relay = spawn(near_app, near, meters(), HALF_OPEN);
    let mut session = far_done
        .map(|done| done.session)
        .unwrap_or_else(|| panic!("no TLS"));
    let mut out = vec![0; 1000];
    let length = ok(session.seal(&mut [], &pattern(500), &mut out));
    let closed = ok(session.close(&mut [], out.get_mut(length..).unwrap_or_default()));
    for byte in out.get(..length + closed).unwrap_or_default() {
        ok(far.write_all(&[*byte]).await);
        tokio::task::yield_now().await;
    }
    ok(far.shutdown().await);
    ok(app.shutdown().await);
    let (got, end) = read_to_end(&mut app).await;
    assert!(got == pattern(500) && end.is_ok());
    let (sealed, _) = read_to_end(&mut far).await;
    assert!(!sealed.is_empty(), "close_notify");
    assert!(ok(relay.await).end.is_ok());
}

#[tokio::test]
async fn what_was_read_before_is_delivered_first() {
    let (mut app, mut near_app) = sockets().await;
    let (mut near, mut far) = sockets().await;
    let ends = Ends {
        app: &mut near_app,
        wire: &mut near,
        session: None,
        plain: b"early ".to_vec(),
        sealed: Vec::new(),
        early: Vec::new(),
        counted: false,
    };
    ok(far.write_all(b"late").await);
    ok(far.shutdown().await);
    ok(app.shutdown().await);
    let relayed = relay(ends, meters(), HALF_OPEN).await;
    assert!(relayed.end.is_ok() && relayed.down == 10);
    let mut got = [0; 10];
    ok(app.read_exact(&mut got).await);
    assert_eq!(&got, b"early late");
}

#[tokio::test]
async fn a_request_and_its_end_may_come_with_the_handshake() {
    let (mut app, mut near_app) = sockets().await;
    let (mut near, mut far) = sockets().await;
    let authority = Authority::new();
    let client = client_session(&authority.credentials("web"), &identity("cart"));
    let server = server_session(&authority.credentials("cart"));
    let request = async {
        let mut session = ok(handshake(client, &mut near, Vec::new()).await).session;
        let mut out = [0; 256];
        let sealed = ok(session.seal(&mut [], b"ping", &mut out));
        let closed = ok(session.close(&mut [], &mut out[sealed..]));
        ok(near.write_all(&out[..sealed + closed]).await);
        ok(near.shutdown().await);
    };
    let ((), done) = tokio::join!(request, handshake(server, &mut far, Vec::new()));
    let done = ok(done);
    assert!(
        done.session.peer_closed(),
        "it did not come with the handshake"
    );
    ok(app.shutdown().await);
    let ends = Ends {
        app: &mut near_app,
        wire: &mut far,
        session: Some(done.session),
        plain: done.plain,
        sealed: done.sealed,
        early: Vec::new(),
        counted: false,
    };
    let relayed = relay(ends, meters(), HALF_OPEN).await;
    assert!(relayed.end.is_ok(), "{:?}", relayed.end);
    drop(near_app);
    assert_eq!(read_to_end(&mut app).await.0, b"ping");
}

#[tokio::test]
async fn a_half_open_connection_that_moves_nothing_ends() {
    for tls in [false, true] {
        let mut chain = chain(tls, Duration::from_millis(200)).await;
        ok(chain.client.shutdown().await);
        let (_, end) = read_to_end(&mut chain.client).await;
        assert!(is_reset(&end), "{end:?}");
        let [near, far] = chain.relays;
        let ends = [ok(near.await).end, ok(far.await).end];
        assert!(
            ends.iter().any(|end| matches!(end, Err(Broken::HalfOpen))),
            "{ends:?}"
        );
    }
}

async fn reset_behind_a_fin(tls: bool, from_client: bool) {
    let Chain {
        client,
        server,
        relays,
        ..
    } = chain(tls, HALF_OPEN).await;
    let (mut ended, mut other) = match from_client {
        true => (client, server),
        false => (server, client),
    };
    ok(ended.write_all(b"all of it").await);
    ok(ended.shutdown().await);
    let (got, end) = read_to_end(&mut other).await;
    assert!(got == b"all of it" && end.is_ok());
    tcp::reset(ended);
    let soon = tokio::time::timeout(Duration::from_secs(8), async {
        for relay in relays {
            assert!(ok(relay.await).end.is_err());
        }
    });
    assert!(soon.await.is_ok(), "tls: {tls}, from_client: {from_client}");
    // After FIN there is nothing to read, so that the reset shows where something is written.
    let sent = other.write_all(b"x").await;
    assert!(sent.is_err(), "tls: {tls}, from_client: {from_client}");
}

#[tokio::test]
async fn a_reset_behind_a_fin_is_passed_on() {
    tokio::join!(
        reset_behind_a_fin(false, true),
        reset_behind_a_fin(false, false),
        reset_behind_a_fin(true, true),
        reset_behind_a_fin(true, false),
    );
}

#[tokio::test]
async fn a_reset_instead_of_the_last_fin_is_no_end() {
    let (mut app, near_app) = sockets().await;
    let [near, (mut far, far_done)] = wire(true).await;
    let relay = spawn(near_app, near, meters(), HALF_OPEN);
    let mut session = far_done
        .map(|done| done.session)
        .unwrap_or_else(|| panic!("no TLS"));
    let mut out = vec![0; 100];
    let length = ok(session.close(&mut [], &mut out));
    ok(far.write_all(out.get(..length).unwrap_or_default()).await);
    assert_eq!(ok(app.read(&mut [0; 1]).await), 0);
    tcp::reset(far);
    let end = ok(relay.await).end;
    assert!(matches!(end, Err(Broken::Wire(_))), "{end:?}");
}

#[tokio::test]
async fn a_connection_with_both_halves_open_may_be_idle() {
    let chain = chain(true, Duration::from_millis(50)).await;
    let [near, far] = chain.relays;
    let idle = tokio::time::timeout(Duration::from_millis(300), near).await;
    assert!(idle.is_err(), "it ended: {idle:?}");
    far.abort();
}

/// The other side is rustls's buffered connection, which shares no code of ours.
#[tokio::test]
async fn keys_may_be_updated_in_the_middle() {
    let authority = Authority::new();
    let (web, cart) = (authority.credentials("web"), authority.credentials("cart"));
    let (mut near, far) = sockets().await;
    let acceptor = tokio_rustls::TlsAcceptor::from(cart.server.clone());
    let session = client_session(&web, &identity("cart"));
    let (near_done, far) = tokio::join!(
        handshake(session, &mut near, Vec::new()),
        acceptor.accept(far)
    );
    let mut far = ok(far);
    let (mut app, near_app) = sockets().await;
    let relay = spawn(near_app, (near, Some(ok(near_done))), meters(), HALF_OPEN);
    for round in 0..3 {
        ok(far.get_mut().1.refresh_traffic_keys());
        ok(far.write_all(&pattern(50_000)).await);
        ok(far.flush().await);
        let mut got = vec![0; 50_000];
        ok(app.read_exact(&mut got).await);
        assert!(got == pattern(50_000), "round {round}");
        ok(app.write_all(&got).await);
        let mut back = vec![0; 50_000];
        ok(far.read_exact(&mut back).await);
        assert!(back == got, "round {round}");
    }
    ok(app.shutdown().await);
    assert_eq!(ok(far.read(&mut [0; 1]).await), 0);
    ok(far.shutdown().await);
    drop(far);
    assert!(ok(relay.await).end.is_ok());
}

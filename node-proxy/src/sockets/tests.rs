// SPDX-License-Identifier: Apache-2.0
//! On the real kernel, in network namespaces that the tests make.

pub(crate) mod pod;

use std::{io, net::SocketAddr, time::Duration};

use culvert_api::agent::{Family, SocketKind, SocketPool};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use self::pod::{Range, TestPod, eventually, in_pod};
use super::*;

const WAIT: Duration = Duration::from_secs(5);

fn dials(family: Family) -> SocketPool {
    SocketPool {
        kind: SocketKind::InboundDial,
        family,
    }
}

fn legs(family: Family) -> SocketPool {
    SocketPool {
        kind: SocketKind::OutboundLeg,
        family,
    }
}

/// The `n`th of many clients.
fn client(family: Family, n: u32) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from((u32::from_be_bytes([10, 77, 0, 1]) + n).to_be_bytes()),
        Family::V6 => IpAddr::from((0xfd77 << 112 | u128::from(n + 1)).to_be_bytes()),
    }
}

/// Ends a connection in one of the ways in which connections end.
async fn end(way: u32, dialled: PooledStream, app: TcpStream) -> io::Result<()> {
    match way % 4 {
        0 => proxy_closes_first(dialled, app).await,
        1 => app_closes_first(dialled, app).await,
        2 => proxy_resets(dialled, app).await,
        _ => {
            drop(dialled);
            Ok(())
        }
    }
}

async fn proxy_closes_first(mut dialled: PooledStream, mut app: TcpStream) -> io::Result<()> {
    dialled.shutdown().await?;
    assert_eq!(app.read(&mut [0; 8]).await?, 0);
    drop(app);
    assert_eq!(dialled.read(&mut [0; 8]).await?, 0);
    Ok(())
}

async fn app_closes_first(mut dialled: PooledStream, mut app: TcpStream) -> io::Result<()> {
    app.shutdown().await?;
    assert_eq!(dialled.read(&mut [0; 8]).await?, 0);
    dialled.shutdown().await?;
    assert_eq!(app.read(&mut [0; 8]).await?, 0);
    Ok(())
}

async fn proxy_resets(dialled: PooledStream, mut app: TcpStream) -> io::Result<()> {
    app.write_all(b"unread").await?;
    dialled.reset();
    let error = app.read(&mut [0; 8]).await.err();
    let error = error.map(|error| error.kind());
    assert_eq!(error, Some(io::ErrorKind::ConnectionReset));
    Ok(())
}

async fn dial_many(pod: &TestPod, family: Family, count: u32) -> io::Result<()> {
    let (listener, to) = pod.listen(family).await?;
    for n in 0..count {
        let from = client(family, n % 500);
        let dialled = pod.sockets.dial_from(from, to, WAIT).await?;
        let (app, peer) = listener.accept().await?;
        assert_eq!(peer.ip(), from);
        assert!(HIGH.contains(&peer.port()), "{peer}");
        end(n, dialled, app).await?;
    }
    Ok(())
}

fn many_clients_from_few_sockets(family: Family) {
    in_pod(Range::Widened, move |pod| async move {
        pod.give(dials(family), 10)?;
        dial_many(&pod, family, 4000).await?;
        let idle = || pod.sockets.pool(dials(family)).idle() == 8;
        eventually("all sockets are back", idle).await;
        assert_eq!(pod.sockets.pool(dials(family)).metrics.closed.get(), 0);
        Ok(())
    });
}

#[test]
fn a_few_v4_sockets_serve_thousands_of_clients_without_the_agent() {
    many_clients_from_few_sockets(Family::V4);
}

#[test]
fn a_few_v6_sockets_serve_thousands_of_clients_without_the_agent() {
    many_clients_from_few_sockets(Family::V6);
}

fn one_client_that_closes_first(range: Range) {
    in_pod(range, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 10)?;
        pod.give(dials(family), 10)?;
        let (listener, to) = pod.listen(family).await?;
        for _ in 0..6000 {
            let dialled = pod.sockets.dial_from(client(family, 0), to, WAIT).await?;
            let (app, _) = listener.accept().await?;
            end(0, dialled, app).await?;
        }
        let metrics = &pod.sockets.pool(dials(family)).metrics;
        let (high, low) = (metrics.high_ports.get(), metrics.low_ports.get());
        assert!(high >= 4000, "{high} high, {low} low");
        Ok(())
    });
}

#[test]
fn one_client_that_closes_first_does_not_run_out_of_ports_chosen_by_the_kernel() {
    one_client_that_closes_first(Range::Widened);
}

#[test]
fn one_client_that_closes_first_does_not_run_out_of_explicit_ports() {
    one_client_that_closes_first(Range::Default);
}

/// With the agent away: what it gave once makes all that is needed.
fn many_clients_with_explicit_ports(family: Family) {
    in_pod(Range::Default, move |pod| async move {
        pod.give(legs(family), 8)?;
        pod.give(dials(family), 8)?;
        dial_many(&pod, family, 1000).await?;
        let metrics = &pod.sockets.pool(dials(family)).metrics;
        assert_eq!((metrics.closed.get(), metrics.recycled.get()), (1000, 0));
        assert!(metrics.made.get() >= 1000 - 5);
        Ok(())
    });
}

#[test]
fn where_no_range_can_be_chosen_v4_ports_are_explicit_and_sockets_made() {
    many_clients_with_explicit_ports(Family::V4);
}

#[test]
fn where_no_range_can_be_chosen_v6_ports_are_explicit_and_sockets_made() {
    many_clients_with_explicit_ports(Family::V6);
}

#[test]
fn more_connections_at_once_than_the_agent_gave_sockets() {
    in_pod(Range::Widened, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 8)?;
        pod.give(dials(family), 8)?;
        let (listener, to) = pod.listen(family).await?;
        let mut open = Vec::new();
        for n in 0..100 {
            let from = client(family, n);
            open.push(pod.sockets.dial_from(from, to, WAIT).await?);
            assert_eq!(listener.accept().await?.1.ip(), from);
            open.push(pod.sockets.dial(to, None, WAIT, false).await?);
            assert_eq!(listener.accept().await?.1.ip(), pod.v4);
        }
        let made = |id| pod.sockets.pool(id).metrics.made.get();
        assert!(made(dials(family)) > 90 && made(legs(family)) > 90);
        Ok(())
    });
}

#[test]
fn no_dial_takes_the_port_of_a_live_wire_connection() {
    in_pod(Range::Widened, |pod| async move {
        let family = Family::V4;
        pod.give(dials(family), 4)?;
        let (listener, to) = pod.listen(family).await?;
        let from = client(family, 0);
        let free = 62345;
        let live = HIGH.filter(|port| *port != free);
        let wires: Vec<_> = live
            .map(|port| pod.sockets.wire(SocketAddr::new(from, port)))
            .collect();
        let _dialled = pod.sockets.dial_from(from, to, WAIT).await?;
        assert_eq!(listener.accept().await?.1.port(), free);
        let _second = pod.sockets.dial_from(from, to, WAIT).await?;
        assert!(BELOW.contains(&listener.accept().await?.1.port()));
        drop(wires);
        Ok(())
    });
}

fn a_client_with_every_usual_port(range: Range) {
    in_pod(range, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 8)?;
        pod.give(dials(family), 8)?;
        let (listener, to) = pod.listen(family).await?;
        let from = client(family, 0);
        let usual = LOW.chain(HIGH).map(|port| SocketAddr::new(from, port));
        let _wires: Vec<_> = usual.map(|client| pod.sockets.wire(client)).collect();
        for _ in 0..2 {
            let _dialled = pod.sockets.dial_from(from, to, WAIT).await?;
            let port = listener.accept().await?.1.port();
            assert!(BELOW.contains(&port), "{port}");
        }
        Ok(())
    });
}

#[test]
fn a_client_with_every_usual_port_is_dialled_for_from_below_them() {
    a_client_with_every_usual_port(Range::Default);
}

#[test]
fn so_it_is_where_the_kernel_chooses() {
    a_client_with_every_usual_port(Range::Widened);
}

/// Random ports with a few tries gave up on the high range when it was half used.
#[test]
fn the_high_range_is_used_up_before_any_other() {
    in_pod(Range::Default, |pod| async move {
        let family = Family::V4;
        pod.give(dials(family), 40)?;
        let (listener, to) = pod.listen(family).await?;
        let from = client(family, 0);
        let few = 61000..=61019;
        let others = HIGH.filter(|port| !few.contains(port));
        let _wires: Vec<_> = others
            .map(|port| pod.sockets.wire(SocketAddr::new(from, port)))
            .collect();
        let mut open = Vec::new();
        for n in 0..few.clone().count() {
            open.push(pod.sockets.dial_from(from, to, WAIT).await?);
            let peer = listener.accept().await?.1;
            assert!(few.contains(&peer.port()), "{n}: {peer}");
        }
        Ok(())
    });
}

#[test]
fn more_legs_than_there_are_ports_in_the_range() {
    in_pod(Range::Few, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 8)?;
        let (listener, to) = pod.listen(family).await?;
        let mut open = Vec::new();
        for n in 0..30 {
            open.push(pod.sockets.dial(to, None, WAIT, false).await?);
            let (app, peer) = listener.accept().await?;
            let below = LEGS_BELOW.contains(&peer.port());
            // A port or two may still be held by the making of sockets.
            assert!(if n < 15 { !below } else { below || n < 20 }, "{n}: {peer}");
            open.push(pod.sockets.dial(to, Some(pod.second), WAIT, false).await?);
            drop((app, listener.accept().await?));
        }
        Ok(())
    });
}

#[test]
fn a_refused_or_unanswered_dial_costs_no_socket() {
    in_pod(Range::Widened, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 1)?;
        let refused = pod
            .sockets
            .dial(SocketAddr::new(pod.v4, 9), None, WAIT, false)
            .await;
        let refused = refused.err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
        let nobody: SocketAddr = "10.1.0.99:80".parse().map_err(io::Error::other)?;
        let short = Duration::from_millis(20);
        let unanswered = pod.sockets.dial(nobody, None, short, false).await;
        let unanswered = unanswered.err().map(|error| error.kind());
        assert_eq!(unanswered, Some(io::ErrorKind::TimedOut));
        assert_eq!(pod.sockets.pool(legs(family)).idle(), 1);
        Ok(())
    });
}

/// The application must not take what it has by then for the whole.
#[test]
fn a_connection_that_is_dropped_on_its_way_is_reset() {
    in_pod(Range::Widened, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 1)?;
        let (listener, to) = pod.listen(family).await?;
        for (abort, end) in [(true, None), (false, Some(0))] {
            let mut dialled = pod.sockets.dial(to, None, WAIT, false).await?;
            dialled.abort_on_close(true);
            dialled.abort_on_close(abort);
            let (mut app, _) = listener.accept().await?;
            drop(dialled);
            assert_eq!(app.read(&mut [0; 8]).await.ok(), end, "{abort}");
            drop(app);
            let idle = || pod.sockets.pool(legs(family)).idle() == 1;
            eventually("the socket is back", idle).await;
        }
        Ok(())
    });
}

#[test]
fn legs_keep_their_source_and_stay_out_of_the_high_ports() {
    in_pod(Range::Widened, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 1)?;
        let (listener, to) = pod.listen(family).await?;
        for (source, seen) in [
            (Some(pod.second), pod.second),
            (None, pod.v4),
            (None, pod.v4),
        ] {
            let dialled = pod.sockets.dial(to, source, WAIT, false).await?;
            let (app, peer) = listener.accept().await?;
            assert_eq!(peer.ip(), seen);
            assert!(LEGS.contains(&peer.port()), "{peer}");
            end(1, dialled, app).await?;
            let idle = || pod.sockets.pool(legs(family)).idle() == 1;
            eventually("the socket is back", idle).await;
        }
        Ok(())
    });
}

#[test]
fn deferred_legs_bring_their_first_bytes_with_the_handshake() {
    in_pod(Range::Widened, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 1)?;
        let (listener, to) = pod.listen(family).await?;
        let mut dialled = pod.sockets.dial(to, None, WAIT, true).await?;
        assert!(accepts_nothing(&listener).await);
        dialled.write_all(b"hello").await?;
        let (app, _) = listener.accept().await?;
        let mut buffer = [0; 8];
        assert_eq!(app.try_read(&mut buffer)?, 5);
        Ok(())
    });
}

async fn accepts_nothing(listener: &tokio::net::TcpListener) -> bool {
    timeout(Duration::from_millis(20), listener.accept())
        .await
        .is_err()
}

#[test]
fn an_empty_pool_is_waited_for() {
    in_pod(Range::Widened, |pod| async move {
        let family = Family::V4;
        let (_listener, to) = pod.listen(family).await?;
        let dial = pod.sockets.dial(to, None, WAIT, false);
        let give = async {
            tokio::task::yield_now().await;
            assert_eq!(pod.wanted(), [legs(family)]);
            pod.give(legs(family), 1)
        };
        let (dialled, given) = tokio::join!(dial, give);
        given?;
        assert!(dialled.is_ok(), "{dialled:?}");
        let starved = pod
            .sockets
            .pool(legs(family))
            .take(Duration::from_millis(10))
            .await;
        assert!(starved.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut));
        Ok(())
    });
}

#[test]
fn sockets_of_a_pod_that_is_gone_are_closed() {
    in_pod(Range::Widened, |pod| async move {
        let family = Family::V4;
        pod.give(legs(family), 3)?;
        let (listener, to) = pod.listen(family).await?;
        let dialled = pod.sockets.dial(to, None, WAIT, false).await?;
        let (app, _) = listener.accept().await?;
        pod.sockets.close();
        end(1, dialled, app).await?;
        let pool = pod.sockets.pool(legs(family));
        eventually("the last is closed", || pool.metrics.closed.get() == 1).await;
        assert_eq!((pool.idle(), pool.metrics.idle.get()), (0, 0));
        Ok(())
    });
}

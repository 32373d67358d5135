// SPDX-License-Identifier: Apache-2.0
mod bulk;
mod ends;
mod socket;

use std::io::IoSlice;

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use self::socket::Held;
use super::*;
use crate::{
    buffer::lent,
    tls::{
        Session, handshake,
        tests::{Authority, client_session, domain, identity, server_session, sockets},
    },
};

type Peer = TlsStream<TcpStream>;

fn ok<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("{e:?}"))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

/// A stream of ours that dialled, and rustls's own buffered one, which shares no code of ours.
async fn dialled() -> (Stream<TcpStream>, Peer) {
    let authority = Authority::new();
    let (mut near, far) = sockets().await;
    let acceptor = TlsAcceptor::from(authority.credentials("cart").server.clone());
    let session = client_session(&authority.credentials("web"), &identity("cart"));
    let (done, far) = tokio::join!(
        handshake(session, &mut near, Vec::new()),
        acceptor.accept(far)
    );
    (Stream::mutual(near, ok(done)), ok(far).into())
}

/// The same, with ours the one that accepted.
async fn accepted() -> (Stream<TcpStream>, Peer) {
    let authority = Authority::new();
    let (far, mut near) = sockets().await;
    let connector = TlsConnector::from(authority.credentials("web").client.clone());
    let name = domain().server_name(&identity("cart"));
    let session = server_session(&authority.credentials("cart"));
    let (done, far) = tokio::join!(
        handshake(session, &mut near, Vec::new()),
        connector.connect(ok(ServerName::try_from(name)), far)
    );
    (Stream::mutual(near, ok(done)), ok(far).into())
}

/// A stream of ours, and its peer's session on a bare socket.
async fn bare() -> (Stream<Held>, Box<Session>, TcpStream) {
    let authority = Authority::new();
    let (mut near, mut far) = sockets().await;
    let client = client_session(&authority.credentials("web"), &identity("cart"));
    let server = server_session(&authority.credentials("cart"));
    let (near_done, far_done) = tokio::join!(
        handshake(client, &mut near, Vec::new()),
        handshake(server, &mut far, Vec::new())
    );
    let stream = Stream::mutual(Held::new(near), ok(near_done));
    (stream, ok(far_done).session, far)
}

/// Has the peer's next record sealed with another key, and asks for another one of ours.
fn refresh(peer: &mut Peer) {
    ok(match peer {
        TlsStream::Client(peer) => peer.get_mut().1.refresh_traffic_keys(),
        TlsStream::Server(peer) => peer.get_mut().1.refresh_traffic_keys(),
    });
}

fn seal(session: &mut Session, plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0; plain.len() + 1000];
    let length = ok(session.seal(&mut [], plain, &mut out));
    out.truncate(length);
    [session.take_control(), out].concat()
}

fn close(session: &mut Session) -> Vec<u8> {
    let mut out = vec![0; 100];
    let length = ok(session.close(&mut [], &mut out));
    out.truncate(length);
    out
}

/// The lengths of the records that `sealed` is made of.
fn records(mut sealed: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some(&[_, _, _, high, low]) = sealed.get(..5) {
        let length = usize::from(u16::from_be_bytes([high, low]));
        lengths.push(length);
        sealed = sealed.get(5 + length..).unwrap_or_default();
    }
    assert!(sealed.is_empty(), "{} bytes left over", sealed.len());
    lengths
}

fn now<T>(mut with: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    with(&mut Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test]
async fn a_byte_at_a_time_either_way() {
    for (mut stream, mut peer) in [dialled().await, accepted().await] {
        let message = pattern(2000);
        for byte in &message {
            ok(stream.write_all(&[*byte]).await);
        }
        ok(stream.flush().await);
        let mut got = vec![0; message.len()];
        ok(peer.read_exact(&mut got).await);
        assert!(got == message);
        ok(peer.write_all(&message).await);
        ok(peer.flush().await);
        let mut got = Vec::new();
        while got.len() < message.len() {
            assert_eq!(ok(stream.read(&mut []).await), 0);
            got.push(ok(stream.read_u8().await));
        }
        assert!(got == message);
    }
}

#[tokio::test]
async fn slices_share_records_of_16_kib() {
    let (mut stream, mut session, mut far) = bare().await;
    assert!(stream.is_write_vectored());
    let (empty, head, body) = (vec![], pattern(90), pattern(40_000));
    let slices = [&empty, &head, &empty, &head, &body].map(|vec| IoSlice::new(vec));
    let count = ok(stream.write_vectored(&slices[..4]).await);
    assert_eq!(count, 180);
    let count = count + ok(stream.write_vectored(&slices).await);
    let large = pattern(200_000);
    let large_count = ok(stream.write(&large).await);
    assert_eq!((count, large_count), (180 + 40_180, 64 << 10));
    assert_eq!(ok(stream.write(&[]).await), 0);
    ok(stream.shutdown().await);
    let mut sealed = Vec::new();
    ok(far.read_to_end(&mut sealed).await);
    let expected = [180, 16_384, 16_384, 7412, 16_384, 16_384, 16_384, 16_384, 2];
    assert_eq!(records(&sealed), expected.map(|length| length + 17));
    let mut plain = vec![0; sealed.len()];
    let opened = ok(session.open(&mut sealed, &mut plain));
    let sent = [&head, &head, &head, &head, &body, &large[..64 << 10]].concat();
    assert!(plain[..opened.written] == sent && session.peer_closed());
}

#[tokio::test]
async fn keys_may_be_updated_in_the_middle() {
    for (mut stream, mut peer) in [dialled().await, accepted().await] {
        for round in 0..5 {
            refresh(&mut peer);
            ok(peer.write_all(&pattern(50_000)).await);
            ok(peer.flush().await);
            let mut got = vec![0; 50_000];
            ok(stream.read_exact(&mut got).await);
            assert!(got == pattern(50_000), "round {round}");
            if round % 2 == 0 {
                ok(stream.write_all(&got).await);
                ok(stream.flush().await);
                let mut back = vec![0; 50_000];
                ok(peer.read_exact(&mut back).await);
                assert!(back == got, "round {round}");
            }
        }
        // close_notify is sealed with the new key, behind the update that rustls kept back.
        ok(stream.shutdown().await);
        assert_eq!(ok(peer.read(&mut [0; 1]).await), 0);
    }
}

#[tokio::test]
async fn an_idle_stream_holds_no_memory() {
    let (mut stream, mut peer) = dialled().await;
    for _ in 0..3 {
        ok(peer.write_all(&pattern(100_000)).await);
        ok(peer.flush().await);
        let mut got = vec![0; 100_000];
        ok(stream.read_exact(&mut got).await);
        ok(stream.write_all(&got).await);
        ok(stream.flush().await);
        ok(peer.read_exact(&mut got).await);
        let mut room = [0; 10];
        let mut room = ReadBuf::new(&mut room);
        assert!(now(|cx| Pin::new(&mut stream).poll_read(cx, &mut room)).is_pending());
        assert_eq!(lent(), 0);
    }
    // Also while what it reads is taken bit by bit.
    ok(peer.write_all(&pattern(100)).await);
    ok(peer.flush().await);
    assert_eq!(ok(stream.read_u8().await), 0);
    assert_eq!(lent(), 1);
    ok(stream.read_exact(&mut [0; 99]).await);
    assert_eq!(lent(), 0);
    assert!(size_of::<Stream<TcpStream>>() < 512);
}

#[tokio::test]
async fn a_full_socket_keeps_one_sealed_rest_and_takes_no_more() {
    let (mut stream, mut session, mut far) = bare().await;
    stream.get_mut().takes = Some(1000);
    let message = pattern(30_000);
    let accepted = now(|cx| Pin::new(&mut stream).poll_write(cx, &message));
    assert!(matches!(accepted, Poll::Ready(Ok(30_000))), "{accepted:?}");
    for _ in 0..3 {
        assert!(now(|cx| Pin::new(&mut stream).poll_write(cx, b"more")).is_pending());
        assert!(now(|cx| Pin::new(&mut stream).poll_flush(cx)).is_pending());
        assert!(now(|cx| Pin::new(&mut stream).poll_shutdown(cx)).is_pending());
        assert_eq!(lent(), 1);
    }
    stream.get_mut().takes = None;
    ok(stream.write_all(b"more").await);
    ok(stream.shutdown().await);
    let mut sealed = Vec::new();
    ok(far.read_to_end(&mut sealed).await);
    let mut plain = vec![0; sealed.len()];
    let opened = ok(session.open(&mut sealed, &mut plain));
    assert!(plain[..opened.written] == [&message[..], b"more"].concat());
    assert!(session.peer_closed() && lent() == 0);
}

#[tokio::test]
async fn a_reader_writes_what_nobody_flushed() {
    let (mut stream, mut session, mut far) = bare().await;
    stream.get_mut().takes = Some(10);
    ok(stream.write_all(b"unflushed").await);
    stream.get_mut().takes = None;
    let mut room = [0; 10];
    let mut room = ReadBuf::new(&mut room);
    assert!(now(|cx| Pin::new(&mut stream).poll_read(cx, &mut room)).is_pending());
    let mut sealed = [0; 9 + 22];
    ok(far.read_exact(&mut sealed).await);
    let mut plain = [0; 31];
    let opened = ok(session.open(&mut sealed, &mut plain));
    assert_eq!(&plain[..opened.written], b"unflushed");
}

#[tokio::test]
async fn early_bytes_come_first_and_plain_is_passed_through() {
    let (mut far, near) = sockets().await;
    let mut stream = Stream::plain(near, pattern(1000));
    assert!(stream.is_write_vectored());
    ok(far.write_all(b"late").await);
    for byte in pattern(1000) {
        assert_eq!(ok(stream.read_u8().await), byte);
    }
    let mut got = [0; 4];
    ok(stream.read_exact(&mut got).await);
    assert_eq!(&got, b"late");
    let slices = [IoSlice::new(b"one "), IoSlice::new(b"two")];
    assert_eq!(ok(stream.write_vectored(&slices).await), 7);
    ok(stream.flush().await);
    ok(stream.shutdown().await);
    let mut got = String::new();
    ok(far.read_to_string(&mut got).await);
    assert_eq!(got, "one two");
    assert_eq!(lent(), 0);
}

#[tokio::test]
async fn plain_parts_keep_what_was_not_read() {
    let (_far, near) = sockets().await;
    let mut stream = Stream::plain(near, b"unread".to_vec());
    ok(stream.read_u8().await);
    let (_, wire) = stream.into_parts(b"unused ");
    assert!(
        matches!(&wire, Wire::Plain(plain) if plain == b"unused nread"),
        "{wire:?}"
    );
}

#[tokio::test]
async fn parts_go_on_with_all_that_was_read_and_written() {
    let (mut stream, mut session, mut far) = bare().await;
    let (unread, late) = (seal(&mut session, b"unread"), seal(&mut session, b"late"));
    let (begun, end) = late.split_at(12);
    ok(far.write_all(&[&unread[..], begun].concat()).await);
    assert_eq!(ok(stream.read_u8().await), b'u');
    stream.get_mut().takes = Some(100);
    let message = pattern(20_000);
    assert_eq!(ok(stream.write(&message).await), 20_000);
    let (socket, wire) = stream.into_parts(b"unused ");
    let Wire::Mutual(done) = wire else {
        panic!("{wire:?}");
    };
    assert_eq!((done.plain.as_slice(), lent()), (&b"unused nread"[..], 0));
    assert!(begun.ends_with(&done.sealed), "{} bytes", done.sealed.len());
    let mut stream = Stream::mutual(socket.into_inner(), done);
    ok(far.write_all(end).await);
    let mut got = [0; 16];
    ok(stream.read_exact(&mut got).await);
    assert_eq!(&got, b"unused nreadlate");
    ok(stream.write_all(b"more").await);
    ok(stream.shutdown().await);
    let mut sealed = Vec::new();
    ok(far.read_to_end(&mut sealed).await);
    let mut plain = vec![0; sealed.len()];
    let opened = ok(session.open(&mut sealed, &mut plain));
    assert!(plain[..opened.written] == [&message[..], b"more"].concat());
}

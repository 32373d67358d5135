// SPDX-License-Identifier: Apache-2.0
//! Much of it, both ways at once, against sockets that hold little.

use socket2::SockRef;

use super::*;

const MUCH: usize = 64 << 20;
const PERIOD: usize = 251 * 400;

/// The first `length` bytes of a pattern that repeats itself, in writes of `size`.
async fn send(mut to: impl AsyncWrite + Unpin, length: usize, size: usize) {
    let pattern = pattern(PERIOD + size);
    let mut sent = 0;
    while sent < length {
        let at = sent % PERIOD;
        let next = &pattern[at..at + size.min(length - sent)];
        sent += ok(to.write(next).await);
    }
    ok(to.shutdown().await);
}

/// To the end, which comes after `length` bytes of the pattern.
async fn receive(mut from: impl AsyncRead + Unpin, length: usize, size: usize) {
    let pattern = pattern(PERIOD + size);
    let (mut room, mut got) = (vec![0; size], 0);
    loop {
        let read = ok(from.read(&mut room).await);
        if read == 0 {
            break assert_eq!(got, length);
        }
        let at = got % PERIOD;
        assert!(room[..read] == pattern[at..at + read], "at {got}");
        got += read;
    }
}

fn small_buffers(tcp: &TcpStream) {
    ok(SockRef::from(tcp).set_send_buffer_size(20_000));
}

/// In one task, as hyper does it.
async fn both<S: AsyncRead + AsyncWrite + Unpin>(stream: S, length: usize, size: usize) {
    let (read, write) = tokio::io::split(stream);
    tokio::join!(send(write, length, size), receive(read, length, size));
}

/// Each direction in a task of its own.
async fn apart<S>(stream: S, length: usize, size: usize)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (read, write) = tokio::io::split(stream);
    let sending = tokio::spawn(send(write, length, size));
    receive(read, length, size).await;
    ok(sending.await);
}

#[tokio::test]
async fn much_goes_both_ways_at_once_in_one_task() {
    let (mut stream, peer) = dialled().await;
    small_buffers(stream.get_mut());
    tokio::join!(both(stream, MUCH, 100_000), both(peer, MUCH, 100_000));
    assert_eq!(lent(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn much_goes_both_ways_at_once_in_a_task_for_each() {
    let (mut stream, peer) = accepted().await;
    small_buffers(stream.get_mut());
    tokio::join!(apart(stream, MUCH, 10_000), apart(peer, MUCH, 8192));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_goes_both_ways_at_once_between_two_of_ours() {
    let authority = Authority::new();
    let (mut near, mut far) = sockets().await;
    let client = client_session(&authority.credentials("web"), &identity("cart"));
    let server = server_session(&authority.credentials("cart"));
    let (near_done, far_done) = tokio::join!(
        handshake(client, &mut near, Vec::new()),
        handshake(server, &mut far, Vec::new())
    );
    let near = Stream::mutual(near, ok(near_done));
    let far = Stream::mutual(far, ok(far_done));
    tokio::join!(apart(near, MUCH, 65_536), both(far, MUCH, 16_384));
}

#[tokio::test]
async fn a_socket_that_takes_odd_amounts_gets_all() {
    let (mut stream, session, far) = bare().await;
    stream.get_mut().ragged = true;
    let done = crate::tls::Handshaken {
        session,
        plain: Vec::new(),
        sealed: Vec::new(),
    };
    let far = Stream::mutual(far, done);
    tokio::join!(both(stream, 3_000_001, 40_000), both(far, 3_000_001, 777));
    assert_eq!(lent(), 0);
}

#[tokio::test]
async fn plain_much_goes_both_ways_at_once() {
    let (near, far) = sockets().await;
    let early = Stream::plain(near, Vec::new());
    tokio::join!(both(early, MUCH, 100_000), both(far, MUCH, 100_000));
}

// SPDX-License-Identifier: Apache-2.0
//! How a stream ends, in order and not.

use super::*;

async fn all(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, Option<io::ErrorKind>) {
    let mut got = Vec::new();
    let end = stream.read_to_end(&mut got).await;
    (got, end.err().map(|error| error.kind()))
}

#[tokio::test]
async fn an_end_without_close_notify_is_cut_off() {
    let (mut stream, mut session, mut far) = bare().await;
    let whole = seal(&mut session, b"half a");
    let part = seal(&mut session, b"lost");
    ok(far.write_all(&[&whole[..], &part[..20]].concat()).await);
    ok(far.shutdown().await);
    let expected = (b"half a".to_vec(), Some(io::ErrorKind::UnexpectedEof));
    assert_eq!(all(&mut stream).await, expected);
    // Also the second time; and the other direction is as it was.
    assert_eq!(all(&mut stream).await.1, Some(io::ErrorKind::UnexpectedEof));
    ok(stream.write_all(b"heard").await);
    ok(stream.shutdown().await);
    let mut sealed = all(&mut far).await.0;
    let mut plain = vec![0; sealed.len()];
    assert_eq!(ok(session.open(&mut sealed, &mut plain)).written, 5);
}

#[tokio::test]
async fn an_end_that_is_said_is_one_even_with_the_last_bytes() {
    for (mut stream, mut peer) in [dialled().await, accepted().await] {
        ok(peer.write_all(b"last").await);
        ok(peer.shutdown().await);
        assert_eq!(all(&mut stream).await, (b"last".to_vec(), None));
        assert_eq!(all(&mut stream).await, (Vec::new(), None));
        ok(stream.write_all(&pattern(100_000)).await);
        ok(stream.shutdown().await);
        assert_eq!(all(&mut peer).await, (pattern(100_000), None));
        assert_eq!(lent(), 0);
    }
}

#[tokio::test]
async fn reading_goes_on_behind_a_shutdown() {
    for (mut stream, mut peer) in [dialled().await, accepted().await] {
        ok(stream.write_all(b"request").await);
        ok(stream.shutdown().await);
        assert_eq!(all(&mut peer).await, (b"request".to_vec(), None));
        let late = stream.write(b"late").await;
        assert!(matches!(&late, Err(error) if error.kind() == io::ErrorKind::BrokenPipe));
        refresh(&mut peer);
        ok(peer.write_all(&pattern(100_000)).await);
        ok(peer.shutdown().await);
        assert_eq!(all(&mut stream).await, (pattern(100_000), None));
    }
}

#[tokio::test]
async fn nothing_behind_close_notify_is_read() {
    let (mut stream, mut session, mut far) = bare().await;
    let bytes = [
        seal(&mut session, b"last"),
        close(&mut session),
        vec![0x17; 30_000],
    ]
    .concat();
    ok(far.write_all(&bytes).await);
    assert_eq!(all(&mut stream).await, (b"last".to_vec(), None));
}

#[tokio::test]
async fn close_notify_and_fin_are_sent_once_behind_what_was_written() {
    let (mut stream, mut session, mut far) = bare().await;
    ok(stream.write_all(b"last").await);
    stream.get_mut().takes = Some(0);
    assert!(now(|cx| Pin::new(&mut stream).poll_shutdown(cx)).is_pending());
    let late = now(|cx| Pin::new(&mut stream).poll_write(cx, b"late"));
    assert!(matches!(late, Poll::Ready(Err(_))), "{late:?}");
    stream.get_mut().takes = None;
    for _ in 0..3 {
        ok(stream.shutdown().await);
        ok(stream.flush().await);
    }
    let mut sealed = all(&mut far).await.0;
    assert_eq!(records(&sealed), [4 + 17, 2 + 17]);
    let mut plain = vec![0; sealed.len()];
    assert_eq!(ok(session.open(&mut sealed, &mut plain)).written, 4);
    assert!(session.peer_closed());
}

#[tokio::test]
async fn a_request_and_its_end_may_come_with_the_handshake() {
    let (mut stream, mut session, mut far) = bare().await;
    // Behind the session tickets.
    ok(far.write_all(&seal(&mut session, b"0")).await);
    ok(stream.read_u8().await);
    let (socket, wire) = stream.into_parts(b"");
    let Wire::Mutual(mut done) = wire else {
        panic!("{wire:?}");
    };
    done.plain = b"decrypted ".to_vec();
    done.sealed = [seal(&mut session, b"sealed"), close(&mut session)].concat();
    let mut stream = Stream::mutual(socket, done);
    ok(stream.write_all(b"answer").await);
    ok(stream.flush().await);
    assert_eq!(all(&mut stream).await, (b"decrypted sealed".to_vec(), None));
    ok(far.read_exact(&mut [0; 6 + 22]).await);
}

fn source<T: std::fmt::Debug>(ended: &io::Result<T>) -> Option<&rustls::Error> {
    let error = ended.as_ref().err()?;
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    error.get_ref()?.downcast_ref()
}

/// What a stream tells a peer that sends `bytes`.
async fn told_to(bytes: &[u8]) -> Option<rustls::Error> {
    let (mut stream, mut session, mut far) = bare().await;
    ok(far.write_all(bytes).await);
    ok(far.shutdown().await);
    for _ in 0..2 {
        let read = stream.read(&mut [0; 100]).await;
        assert!(source(&read).is_some(), "{read:?}");
    }
    let written = stream.write(b"more").await;
    assert!(source(&written).is_some(), "{written:?}");
    ok(stream.shutdown().await);
    assert_eq!(lent(), 0);
    let mut sealed = all(&mut far).await.0;
    assert_eq!(records(&sealed).len(), 1, "one alert and no close_notify");
    let mut plain = vec![0; sealed.len()];
    session.open(&mut sealed, &mut plain).err()
}

#[tokio::test]
async fn what_breaks_the_protocol_is_refused_with_an_alert_and_never_delivered() {
    let garbage = [&[0x17, 3, 3, 0, 40][..], &[7; 40]].concat();
    let bad_mac = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
    assert_eq!(told_to(&garbage).await, Some(bad_mac));
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x17, 3, 3, 0xff, 0xff, 0]] {
        let told = told_to(bytes).await;
        let alert = matches!(told, Some(rustls::Error::AlertReceived(_)));
        assert!(alert, "{told:?}");
    }
}

#[tokio::test]
async fn an_alert_of_the_peer_is_told() {
    let (mut stream, mut peer) = dialled().await;
    ok(peer.get_mut().0.write_all(&[0x17, 3, 3, 0, 20]).await);
    ok(peer.get_mut().0.write_all(&[7; 20]).await);
    let error = stream.read(&mut [0; 10]).await;
    assert!(error.is_err(), "{error:?}");
    let told = peer.read(&mut [0; 10]).await;
    let Err(told) = told else {
        panic!("{told:?}");
    };
    assert!(told.to_string().contains("BadRecordMac"), "{told}");
}

#[tokio::test]
async fn a_writer_that_waits_is_told_that_the_reader_failed() {
    let (mut stream, _session, mut far) = bare().await;
    stream.get_mut().takes = Some(10);
    ok(stream.write_all(b"stuck").await);
    let (mut read, mut write) = tokio::io::split(stream);
    let writing = tokio::spawn(async move { write.write(b"more").await });
    tokio::task::yield_now().await;
    ok(far
        .write_all(&[[0x17, 3, 3, 0, 20].as_slice(), &[7; 20]].concat())
        .await);
    assert!(read.read_u8().await.is_err());
    let written = ok(writing.await);
    assert_eq!(source(&written), Some(&rustls::Error::DecryptError));
}

#[tokio::test]
async fn a_reset_is_the_error_of_the_socket() {
    let (mut stream, mut session, mut far) = bare().await;
    ok(far.write_all(&seal(&mut session, b"before")).await);
    let mut got = [0; 6];
    ok(stream.read_exact(&mut got).await);
    crate::tcp::reset(far);
    let end = all(&mut stream).await;
    assert_eq!(end, (Vec::new(), Some(io::ErrorKind::ConnectionReset)));
}

// SPDX-License-Identifier: Apache-2.0
use crate::tls::tests::{Authority, client_session, domain, identity};

use super::*;

fn client_hello() -> Vec<u8> {
    let credentials = Authority::new().credentials("web");
    let mut session = client_session(&credentials, &identity("cart"));
    let _ = session.open(&mut [], &mut []);
    session.take_control()
}

fn expected() -> First {
    First::Hello(Hello {
        server_name: Some(domain().server_name(&identity("cart"))),
        offer: Offer::Known,
    })
}

/// The same handshake message in records of `size` bytes.
fn refragmented(hello: &[u8], size: usize) -> Vec<u8> {
    let message = hello.get(5..).unwrap_or_default();
    let record = |piece: &[u8]| {
        let length = u16::try_from(piece.len()).unwrap_or_default().to_be_bytes();
        [&[HANDSHAKE, MAJOR, 1], &length[..], piece].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

#[test]
fn whole_in_pieces_and_in_records() {
    let hello = client_hello();
    for bytes in [
        hello.clone(),
        refragmented(&hello, 100),
        refragmented(&hello, 1),
    ] {
        for size in [bytes.len(), 1000, 7, 1] {
            let mut assembler = Assembler::default();
            let first = bytes.chunks(size).find_map(|piece| assembler.push(piece));
            assert_eq!(first, Some(expected()), "pieces of {size}");
            assert_eq!(assembler.bytes, bytes, "every byte is kept");
        }
    }
}

#[test]
fn other_bytes_are_told_at_once() {
    for other in [&b"GET / HTTP/1.1\r\n"[..], &[HANDSHAKE, b'x'], &[0; 10]] {
        assert_eq!(
            Assembler::default().push(other),
            Some(First::Other),
            "{other:?}"
        );
    }
    let mut assembler = Assembler::default();
    assert_eq!(assembler.push(&[HANDSHAKE]), None);
    assert_eq!(assembler.push(&[MAJOR]), None);
    // A handshake message that is no ClientHello.
    let first = assembler.push(&[3, 0, 5, 2, 0, 0, 1, 0]);
    assert_eq!(first, Some(First::Other));
}

#[test]
fn an_endless_hello_is_given_up() {
    let mut assembler = Assembler::default();
    // A ClientHello of 60,000 bytes, in records of 1,000.
    let mut message = vec![0; 60_000];
    message[..4].copy_from_slice(&[1, 0, 0xea, 0x60]);
    let header = [0; 5];
    let bytes = refragmented(&[&header[..], &message].concat(), 1000);
    let given_up = bytes
        .chunks(1005)
        .position(|piece| assembler.push(piece).is_some());
    assert!(
        given_up.is_some_and(|pieces| pieces * 1005 <= MAX),
        "{given_up:?}"
    );
}

#[test]
fn offers_of_other_releases_are_told_apart() {
    let offers = |protocols: &[&'static [u8]]| offer(protocols.iter().copied());
    assert_eq!(offers(&[b"h2", b"http/1.1"]), Offer::Nothing);
    assert_eq!(offers(&[b"h2", b"culvert/of-tomorrow"]), Offer::Unknown);
    assert_eq!(
        offers(&[b"culvert/of-tomorrow", b"culvert/tcp"]),
        Offer::Known
    );
}

/// A generator with a fixed seed: what fails once fails again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or_default() % limit
    }

    /// One change: a byte, a bit, something cut out, doubled or put in, or a length field.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let end = (at + self.below(40)).min(bytes.len());
        match self.below(6) {
            0 => bytes[at] = self.below(256) as u8,
            1 => bytes[at] ^= 1 << self.below(8),
            2 if bytes.len() > 60 => drop(bytes.drain(at..end)),
            3 => bytes.splice(at..at, bytes[at..end].to_vec()).for_each(drop),
            4 => bytes.insert(at, self.below(256) as u8),
            _ => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
        }
    }
}

/// What rustls's own acceptor makes of all the bytes at once.
fn reference(bytes: &[u8]) -> Option<Hello> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok().filter(|read| *read > 0)?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(super::hello(&accepted.client_hello()));
        }
    }
    None
}

#[test]
fn damaged_hellos_do_no_harm_and_are_read_as_rustls_reads_them() {
    let whole = client_hello();
    let corpus = [
        whole.clone(),
        refragmented(&whole, 100),
        refragmented(&whole, 1),
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut accepted = 0;
    for round in 0..20_000 {
        let mut damaged = corpus[random.below(corpus.len())].clone();
        (0..=random.below(6)).for_each(|_| random.damage(&mut damaged));
        damaged.truncate(MAX);
        let size = 1 + random.below(damaged.len());
        let mut assembler = Assembler::default();
        let first = damaged.chunks(size).find_map(|piece| assembler.push(piece));
        assert!(damaged.starts_with(&assembler.bytes), "round {round}");
        let got = match first {
            Some(First::Hello(hello)) => Some(hello),
            _ => None,
        };
        accepted += usize::from(got.is_some());
        // A broken record behind a whole ClientHello is not looked at when it comes later.
        let expected = reference(&assembler.bytes);
        assert_eq!(got, expected, "round {round}, pieces of {size}");
    }
    assert!(
        (500..19_500).contains(&accepted),
        "{accepted} were accepted"
    );
}

#[test]
fn whatever_comes_ends_within_the_limit() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..3000 {
        let mut assembler = Assembler::default();
        let mut first = assembler.push(&[HANDSHAKE, MAJOR]);
        while first.is_none() {
            // As much as is read at once, and records that are long, short and empty.
            let mut piece = vec![0; 1 + random.below(PIECE).min(MAX - assembler.bytes.len() - 1)];
            piece.fill_with(|| [1, 0, 0, HANDSHAKE, MAJOR, 0xff][random.below(6)]);
            first = assembler.push(&piece);
        }
        assert_eq!(first, Some(First::Other), "round {round}");
        assert!(assembler.bytes.capacity() <= 2 * MAX, "round {round}");
    }
}

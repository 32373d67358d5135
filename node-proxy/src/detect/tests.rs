// SPDX-License-Identifier: Apache-2.0
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{Protocol::*, *};

/// What clients of many protocols say first, as far as it goes in one segment.
const OPAQUE: &[(&str, &[u8])] = &[
    ("Redis inline", b"PING\r\n"),
    ("Redis inline with arguments", b"SET key value\r\n"),
    ("Redis", b"*1\r\n$4\r\nPING\r\n"),
    ("memcached", b"get key\r\n"),
    ("memcached set", b"set key 0 0 5\r\nhello\r\n"),
    ("memcached stats", b"stats\r\n"),
    ("memcached binary", b"\x80\x0b\0\0\0\0\0\0"),
    ("SMTP", b"EHLO client.example\r\n"),
    ("FTP", b"USER anonymous\r\n"),
    ("POP3", b"USER alice\r\n"),
    ("IMAP", b"a1 LOGIN alice secret\r\n"),
    ("IRC", b"NICK alice\r\nUSER alice 0 * :Alice\r\n"),
    ("NNTP", b"MODE READER\r\n"),
    ("SSH", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
    ("PostgreSQL", b"\0\0\0\x08\x04\xd2\x16\x2f"),
    ("PostgreSQL start-up", b"\0\0\0\x54\0\x03\0\0user\0"),
    ("MySQL", b"\x4a\0\0\x01\x8d\xa6\xff\x09"),
    ("MongoDB", b"\x3a\0\0\0\x01\0\0\0\0\0\0\0\xd4\x07\0\0"),
    ("Cassandra", b"\x04\0\0\0\x05\0\0\0\0"),
    ("Kafka", b"\0\0\0\x24\0\x12\0\x03"),
    ("ZooKeeper", b"\0\0\0\x2d\0\0\0\0"),
    ("ZooKeeper's four letters", b"ruok\n"),
    ("AMQP 0-9-1", b"AMQP\0\0\x09\x01"),
    ("AMQP 1.0", b"AMQP\x03\x01\0\0"),
    ("MQTT", b"\x10\x17\0\x04MQTT\x04\x02\0\x3c"),
    (
        "NATS",
        b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n",
    ),
    ("STOMP", b"CONNECT\naccept-version:1.2\nhost:/\n\n\0"),
    ("XMPP", b"<?xml version='1.0'?><stream:stream"),
    ("SIP", b"INVITE sip:bob@example.com SIP/2.0\r\n"),
    ("RTSP", b"OPTIONS rtsp://example.com/a RTSP/1.0\r\n"),
    ("LDAP", b"\x30\x0c\x02\x01\x01\x60\x07"),
    ("DNS", b"\0\x1d\x12\x34\x01\0\0\x01"),
    ("TDS", b"\x12\x01\0\x2f\0\0\x01\0"),
    ("RDP", b"\x03\0\0\x13\x0e\xe0\0\0"),
    ("SMB", b"\0\0\0\xf4\xfeSMB"),
    ("SOCKS 5", b"\x05\x01\0"),
    ("SOCKS 4", b"\x04\x01\0\x50\x7f\0\0\x01\0"),
    ("rsync", b"@RSYNCD: 31.0\n"),
    (
        "git",
        b"0032git-upload-pack /project.git\0host=example.com\0",
    ),
    (
        "Subversion",
        b"( 2 ( edit-pipeline svndiff1 ) 22:svn://example.com/a",
    ),
    ("PROXY v1", b"PROXY TCP4 10.0.0.1 10.0.0.2 56324 443\r\n"),
    ("PROXY v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"),
    ("Graphite", b"servers.web.load 1.5 1700000000\n"),
    (
        "syslog",
        b"<34>1 2003-10-11T22:14:15.003Z mymachine su - - -\n",
    ),
    ("Zabbix", b"ZBXD\x01\x05\0\0\0"),
    ("Thrift", b"\0\0\0\x17\x80\x01\0\x01"),
    ("Thrift's header", b"\0\0\0\x20\x0f\xff\0\0"),
    ("fluentd", b"\x93\xa3tag\xdb\0\0"),
    ("BitTorrent", b"\x13BitTorrent protocol"),
    ("beanstalkd", b"put 0 0 10 5\r\nhello\r\n"),
    ("Gearman", b"\0REQ\0\0\0\x04\0\0\0\0"),
    ("Elasticsearch", b"ES\0\0\0\x2e"),
    ("ClickHouse", b"\0\x11ClickHouse client"),
    ("WHOIS", b"example.com\r\n"),
    ("finger", b"alice\r\n"),
    ("gopher", b"/menu\r\n"),
    ("Gemini without TLS", b"gemini://example.com/\r\n"),
    ("JSON lines", b"{\"method\":\"GET /\"}\n"),
    ("SSL 2.0", b"\x80\x2e\x01\0\x02"),
    ("a TLS alert", b"\x15\x03\x03\0\x02"),
    ("almost TLS", b"\x16\x02"),
    ("HTTP/0.9", b"GET /index.html\r\n"),
    ("HTTP/0.9 with LF", b"GET /\n"),
    ("HTTP of the future", b"GET / HTTP/1.2\r\n"),
    ("HTTP/2 as a version", b"GET / HTTP/2.0\r\n"),
    ("another preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
    (
        "a preface behind a line",
        b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
    ("no version", b"GET / \r\n"),
    ("two spaces", b"GET  / HTTP/1.1\r\n"),
    ("a space in the target", b"GET /a b HTTP/1.1\r\n"),
    ("a space at the end", b"GET / HTTP/1.1 \r\n"),
    ("a tab", b"GET\t/ HTTP/1.1\r\n"),
    ("NUL in the target", b"GET /\0 HTTP/1.1\r\n"),
    ("DEL in the target", b"GET /\x7f HTTP/1.1\r\n"),
    ("CR alone", b"GET / HTTP/1.1\rHost: a\r\n"),
    ("a space first", b" GET / HTTP/1.1\r\n"),
    ("a small http", b"GET / http/1.1\r\n"),
    ("a colon in the method", b"Host: a HTTP/1.1\r\n"),
    ("an answer", b"HTTP/1.1 200 OK\r\n"),
    (
        "a long method",
        b"ABCDEFGHIJABCDEFGHIJABCDEFGHIJABC / HTTP/1.1\r\n",
    ),
];

const HTTP1: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.0\r\n",
    b"GET / HTTP/1.1\n",
    b"\r\nGET / HTTP/1.1\r\n",
    b"\n\r\n\nGET / HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"CONNECT example.com:443 HTTP/1.1\r\n",
    b"GET http://example.com/a?b=c#d HTTP/1.1\r\n",
    b"POST /a/b;c=d?e=%20%f0 HTTP/1.1\r\n",
    b"PROPFIND / HTTP/1.1\r\n",
    b"BASELINE-CONTROL / HTTP/1.1\r\n",
    b"M-SEARCH * HTTP/1.1\r\n",
    b"ABCDEFGHIJABCDEFGHIJABCDEFGHIJAB / HTTP/1.1\r\n",
    b"get / HTTP/1.1\r\n",
    b"PRI * HTTP/1.1\r\n",
    "GET /ä HTTP/1.1\r\n".as_bytes(),
];

fn judge(bytes: &[u8]) -> Option<Protocol> {
    Judge::default().feed(bytes)
}

/// All of `bytes`, one after the other: None until the answer.
fn judge_each(bytes: &[u8]) -> Vec<Option<Protocol>> {
    (0..=bytes.len())
        .map(|length| judge(bytes.get(..length).unwrap_or_default()))
        .collect()
}

/// What `bytes` are known as, if a prefix of them never is anything else.
fn settled(bytes: &[u8]) -> Option<Protocol> {
    let answers = judge_each(bytes);
    let first = answers.iter().position(Option::is_some)?;
    let (before, after) = answers.split_at(first);
    let all_one = after.iter().all(|answer| *answer == after[0]);
    assert!(before.iter().all(Option::is_none) && all_one, "{answers:?}");
    after[0]
}

#[test]
fn other_protocols_are_opaque_by_their_first_words() {
    for (name, bytes) in OPAQUE {
        assert_eq!(settled(bytes), Some(Opaque), "{name}");
    }
}

#[test]
fn requests_are_told_by_their_whole_line_wherever_it_is_split() {
    for line in HTTP1 {
        let name = String::from_utf8_lossy(line);
        assert_eq!(settled(line), Some(Http1), "{name}");
        let (end, begun) = line.split_last().unwrap_or((&0, &[]));
        assert_eq!((judge(begun), *end), (None, b'\n'), "{name}");
        let whole = [line, &b"Host: a\r\n\r\n\x16\x03\0"[..]].concat();
        assert_eq!(settled(&whole), Some(Http1), "{name}");
    }
}

#[test]
fn http2_is_told_by_its_whole_preface() {
    let (_, begun) = PREFACE.split_last().unwrap_or((&0, &[]));
    assert_eq!(judge(begun), None);
    assert_eq!(settled(PREFACE), Some(Http2));
    let settings = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    assert_eq!(settled(&settings), Some(Http2));
}

#[test]
fn tls_is_told_by_two_bytes() {
    assert_eq!(
        judge_each(b"\x16\x03\x01"),
        [None, None, Some(Tls), Some(Tls)]
    );
}

#[test]
fn a_line_may_be_as_long_as_the_limit() {
    let line = |length: usize| {
        let target = vec![b'a'; length - b"GET / HTTP/1.1\r\n".len()];
        [b"GET /", &target[..], b" HTTP/1.1\r\n"].concat()
    };
    assert_eq!(settled(&line(8 << 10)), Some(Http1));
    assert_eq!(judge(&line(MAX)), Some(Http1));
    assert_eq!(judge(&line(MAX)[..MAX - 1]), None);
    assert_eq!(judge(&line(MAX + 1)), Some(Opaque));
    assert_eq!(judge(&line(MAX + 1)[..MAX]), Some(Opaque));
    assert_eq!(judge(&vec![b'\n'; MAX]), Some(Opaque));
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

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        let common = b" \r\n\0/HT1PRI*\x16\x03";
        match self.below(5) {
            0 => bytes[at] = self.below(256) as u8,
            1 => bytes[at] = common[self.below(common.len())],
            2 => bytes.insert(at, common[self.below(common.len())]),
            3 if bytes.len() > 1 => drop(bytes.remove(at)),
            _ => bytes.splice(at..at, bytes[at..].to_vec()).for_each(drop),
        }
        bytes.truncate(200);
    }
}

/// The same by other means: whole lines, no states.
fn reference(bytes: &[u8]) -> bool {
    let text: String = bytes.iter().map(|&byte| char::from(byte)).collect();
    let line = text.trim_start_matches("\r\n").trim_start_matches('\n');
    if line.len() < text.len() && line.starts_with(['\r', '\n']) {
        return reference(line.chars().map(|c| c as u8).collect::<Vec<_>>().as_slice());
    }
    let Some((line, _)) = line.split_once('\n') else {
        return false;
    };
    let words: Vec<_> = line.strip_suffix('\r').unwrap_or(line).split(' ').collect();
    let [method, target, "HTTP/1.0" | "HTTP/1.1"] = words[..] else {
        return false;
    };
    let visible = |text: &str| !text.is_empty() && text.chars().all(|c| c > ' ' && c != '\x7f');
    let separator = |c: char| "\"(),/:;<=>?@[\\]{}".contains(c) || !c.is_ascii();
    visible(target) && visible(method) && !method.contains(separator) && method.len() <= 32
}

#[test]
fn damaged_and_random_beginnings_are_settled_once_and_rightly() {
    let corpus: Vec<&[u8]> = OPAQUE
        .iter()
        .map(|(_, bytes)| *bytes)
        .chain(HTTP1.iter().copied().cycle().take(2 * OPAQUE.len()))
        .chain([PREFACE])
        .collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut requests = 0;
    for round in 0..20_000 {
        let mut bytes = corpus[random.below(corpus.len())].to_vec();
        (0..random.below(5)).for_each(|_| random.damage(&mut bytes));
        if round % 4 == 0 {
            bytes = (0..40).map(|_| random.below(256) as u8).collect();
        }
        let answer = settled(&bytes);
        let shown = String::from_utf8_lossy(&bytes);
        assert_eq!(answer == Some(Http1), reference(&bytes), "{shown:?}");
        assert_eq!(
            answer == Some(Http2),
            bytes.starts_with(PREFACE),
            "{shown:?}"
        );
        assert_eq!(answer == Some(Tls), bytes.starts_with(TLS), "{shown:?}");
        requests += usize::from(answer == Some(Http1));
    }
    assert!((1_000..15_000).contains(&requests), "{requests} requests");
}

#[test]
fn every_answer_comes_within_the_limit() {
    let mut random = Random(7);
    let fills: [&[u8]; 4] = [b"\r\n", b"a", b"GET /", b"\n"];
    for _ in 0..200 {
        let mut bytes = Vec::new();
        while bytes.len() < MAX {
            bytes.extend_from_slice(fills[random.below(fills.len())]);
            if random.below(2) == 0 {
                bytes.extend(std::iter::repeat_n(b'x', random.below(5000)));
            }
        }
        assert!(judge(&bytes).is_some());
    }
}

fn ok<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("{e:?}"))
}

fn found(protocol: Option<Protocol>, bytes: &[u8]) -> Detected {
    Detected {
        protocol,
        bytes: bytes.to_vec(),
    }
}

async fn say_slowly(
    mut client: DuplexStream,
    pieces: Vec<Vec<u8>>,
    pause: Duration,
) -> DuplexStream {
    for piece in pieces {
        ok(client.write_all(&piece).await);
        tokio::time::sleep(pause).await;
    }
    client
}

const SILENCE: Option<Duration> = Some(Duration::from_millis(10));

#[tokio::test(start_paused = true)]
async fn pieces_are_read_until_it_is_clear_and_all_are_kept() {
    let request = b"GET /index.html HTTP/1.1\r\nHost: a\r\n\r\n";
    for size in 1..request.len() {
        let (client, mut server) = duplex(1000);
        let pieces = request.chunks(size).map(<[u8]>::to_vec).collect();
        let client = tokio::spawn(say_slowly(client, pieces, Duration::from_millis(1)));
        let detected = ok(detect(&mut server, SILENCE).await);
        assert_eq!(detected.protocol, Some(Http1), "pieces of {size}");
        drop(ok(client.await));
        let mut all = detected.bytes;
        ok(server.read_to_end(&mut all).await);
        assert_eq!(all, request, "pieces of {size}");
    }
}

#[tokio::test(start_paused = true)]
async fn silence_costs_nothing_but_its_time() {
    let (mut client, mut server) = duplex(100);
    let before = (tokio::time::Instant::now(), crate::buffer::lent());
    let detected = ok(detect(&mut server, SILENCE).await);
    assert_eq!(detected, found(None, b""));
    assert_eq!(detected.bytes.capacity(), 0);
    assert_eq!(before.0.elapsed().as_millis() / 2, 5);
    let waits = tokio::time::timeout(Duration::from_secs(600), detect(&mut server, None)).await;
    assert!(waits.is_err(), "{waits:?}");
    ok(client.write_all(b"PING\r\n").await);
    let late = ok(detect(&mut server, None).await);
    assert_eq!(late, found(Some(Opaque), b"PING\r\n"));
    assert_eq!(crate::buffer::lent(), before.1);
}

#[tokio::test(start_paused = true)]
async fn an_incomplete_line_is_opaque_after_its_time() {
    for line in [&b"GET / HTT"[..], b"PROP", &PREFACE[..23], b"\r\n", b"\x16"] {
        let (mut client, mut server) = duplex(100);
        ok(client.write_all(line).await);
        let began = tokio::time::Instant::now();
        let mut detecting = Box::pin(detect(&mut server, SILENCE));
        assert!(
            timeout(Duration::from_millis(50), &mut detecting)
                .await
                .is_err()
        );
        assert_eq!(crate::buffer::lent(), 0, "the buffer is given back");
        assert_eq!(ok(detecting.await), found(Some(Opaque), line));
        let took = began.elapsed();
        assert!((INCOMPLETE..INCOMPLETE * 2).contains(&took), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_else_waits() {
    for (name, bytes) in OPAQUE {
        let (mut client, mut server) = duplex(100);
        ok(client.write_all(bytes).await);
        let began = tokio::time::Instant::now();
        let detected = ok(detect(&mut server, SILENCE).await);
        assert_eq!(detected, found(Some(Opaque), bytes), "{name}");
        assert_eq!(began.elapsed(), Duration::ZERO, "{name}");
    }
}

/// A method of one's own has to come as a whole line.
#[tokio::test(start_paused = true)]
async fn unlikely_beginnings_do_not_wait() {
    for bytes in [
        &b"ping"[..],
        b"HZC",
        b"PING",
        b"GETS",
        b"SET key",
        b"\x16\x02",
    ] {
        let (mut client, mut server) = duplex(100);
        ok(client.write_all(bytes).await);
        let began = tokio::time::Instant::now();
        let detected = ok(detect(&mut server, SILENCE).await);
        assert_eq!(detected, found(Some(Opaque), bytes));
        assert_eq!(began.elapsed(), Duration::ZERO, "{bytes:?}");
    }
    let (mut client, mut server) = duplex(100);
    ok(client.write_all(b"FROB / HTTP/1.1\r\n").await);
    let detected = ok(detect(&mut server, SILENCE).await);
    assert_eq!(detected.protocol, Some(Http1));
}

#[tokio::test(start_paused = true)]
async fn an_end_is_for_the_application() {
    for line in [&b""[..], b"GE", b"\r\n"] {
        let (mut client, mut server) = duplex(100);
        ok(client.write_all(line).await);
        ok(client.shutdown().await);
        let detected = ok(detect(&mut server, SILENCE).await);
        assert_eq!(detected, found(Some(Opaque), line));
    }
}

#[tokio::test]
async fn a_reset_is_an_error() {
    let (client, mut server) = crate::tls::tests::sockets().await;
    crate::tcp::reset(client);
    let ended = detect(&mut server, None).await;
    assert!(
        matches!(&ended, Err(error) if error.kind() == io::ErrorKind::ConnectionReset),
        "{ended:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_detection_goes_on_where_it_was() {
    let (mut client, mut server) = duplex(100);
    let mut detection = Detection::default();
    for piece in [&b"GET /"[..], b"a HT", b"TP/1.1\r"] {
        ok(client.write_all(piece).await);
        let cut = timeout(
            Duration::from_millis(50),
            detection.read(&mut server, SILENCE),
        )
        .await;
        assert!(cut.is_err(), "{cut:?}");
    }
    ok(client.write_all(b"\nrest").await);
    assert_eq!(ok(detection.read(&mut server, SILENCE).await), Some(Http1));
    assert_eq!(detection.into_bytes(), b"GET /a HTTP/1.1\r\nrest");
}

/// hyper gets what was judged, so it has to see the same line.
#[tokio::test]
async fn hyper_takes_what_is_judged_a_request() {
    for line in HTTP1 {
        let (mut client, server) = duplex(10_000);
        ok(client.write_all(line).await);
        ok(client
            .write_all(b"Host: a\r\nConnection: close\r\n\r\n")
            .await);
        let served = std::cell::Cell::new(0);
        let service = hyper::service::service_fn(|_| {
            served.set(served.get() + 1);
            let body = http_body_util::Empty::<bytes::Bytes>::new();
            std::future::ready(Ok::<_, std::convert::Infallible>(http::Response::new(body)))
        });
        let io = hyper_util::rt::TokioIo::new(server);
        let http1 = hyper::server::conn::http1::Builder::new();
        ok(http1.serve_connection(io, service).await);
        assert_eq!(served.get(), 1, "{}", String::from_utf8_lossy(line));
    }
}

#[test]
fn servers_of_http2_are_told_by_their_settings() {
    let go = [0, 0, 24, 4, 0, 0, 0, 0, 0, 0, 5, 0, 16, 0, 0];
    assert!(is_settings(&go) && is_settings(&[0, 0, 0, 4, 0, 0, 0, 0, 0]));
    let others: [&[u8]; 6] = [
        b"",
        &go[..8],
        b"\x4a\0\0\0\x0a8.0.36",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        // An acknowledgement, and a length that no settings have.
        &[0, 0, 0, 4, 1, 0, 0, 0, 0],
        &[0, 0, 7, 4, 0, 0, 0, 0, 0],
    ];
    assert!(others.iter().all(|word| !is_settings(word)));
}

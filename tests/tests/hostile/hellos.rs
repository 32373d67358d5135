// SPDX-License-Identifier: Apache-2.0
//! ClientHellos of every kind.

use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    process::Output,
    sandbox::Sandbox,
    tls::{
        self, CULVERT_TCP, Ending, Hello,
        hello::{ClientHello, Reply, say},
        server_name,
    },
};

use crate::ground::{among_bystanders, at, authority, counted, dial};

const UNRECOGNIZED_NAME: Reply = Reply::Alert(112);
const NO_PROTOCOL: Reply = Reply::Alert(120);
const PROTOCOL_VERSION: Reply = Reply::Alert(70);

/// What a ClientHello gets from a strict and from a permissive pod.
struct Row {
    what: &'static str,
    hello: ClientHello,
    strict: (Reply, Option<&'static str>),
    open: (Reply, Option<&'static str>),
}

fn row(what: &'static str, hello: ClientHello, [strict, open]: [Outcome; 2]) -> Row {
    let (strict, open) = (strict.of("strict"), open.of("open"));
    Row {
        what,
        hello,
        strict,
        open,
    }
}

/// What is expected of a row.
#[derive(Clone, Copy)]
enum Outcome {
    /// The handshake goes on. The client has no secret for it, so that it ends as an error of TLS.
    Mesh,
    /// Not a peer's: RST.
    Reset,
    /// The application gets the bytes.
    Relayed,
    /// Refused by the rule.
    Name,
    /// Refused by the rule.
    Protocol,
    /// Refused by TLS.
    Version,
}

impl Outcome {
    fn of(self, _pod: &str) -> (Reply, Option<&'static str>) {
        match self {
            Self::Mesh => (Reply::Handshake, Some("tls")),
            Self::Reset => (Reply::Closed, Some("identity required")),
            Self::Relayed => (Reply::Echoed, None),
            Self::Name => (UNRECOGNIZED_NAME, Some("unrecognized name")),
            Self::Protocol => (NO_PROTOCOL, Some("no application protocol")),
            Self::Version => (PROTOCOL_VERSION, Some("tls")),
        }
    }
}

fn rows(own: &str) -> Vec<Row> {
    use Outcome::{Mesh, Name, Protocol, Relayed, Reset, Version};
    let hello = || ClientHello::new(own.as_bytes());
    let named = |name: &str| ClientHello::new(name.as_bytes());
    let nul = [own.as_bytes(), b"\0.evil"].concat();
    let doubled = hello().with(0, hello().extensions[0].1.clone());
    vec![
        row("a proxy's", hello(), [Mesh; 2]),
        row("with GREASE", hello().greased(), [Mesh; 2]),
        row("with 500 extensions", hello().crowded(500), [Mesh; 2]),
        row("of 10 KiB", hello().padded(10 << 10), [Mesh; 2]),
        row("in upper case", named(&own.to_uppercase()), [Mesh; 2]),
        row(
            "with a dot behind the name",
            named(&format!("{own}.")),
            [Reset, Relayed],
        ),
        row(
            "with NUL in the name",
            ClientHello::new(&nul),
            [Reset, Relayed],
        ),
        row(
            "with an address for a name",
            named("10.0.0.1"),
            [Reset, Relayed],
        ),
        row("with an empty name", named(""), [Reset, Relayed]),
        row("without a name", hello().nameless(), [Reset, Relayed]),
        row(
            "with two names",
            hello().names(&[own.as_bytes(), b"x"]),
            [Reset, Relayed],
        ),
        row("with the name twice", doubled, [Reset, Relayed]),
        row(
            "with another pod's name",
            named(&server_name("other")),
            [Reset, Name],
        ),
        row(
            "with nobody's name of the mesh",
            named(&server_name("nobody")),
            [Reset, Name],
        ),
        row("without ALPN", hello().alpn(&[]), [Reset, Protocol]),
        row(
            "for HTTP",
            hello().alpn(&[b"h2", b"http/1.1"]),
            [Reset, Protocol],
        ),
        row(
            "for HTTP or the mesh",
            hello().alpn(&[b"h2", CULVERT_TCP]),
            [Mesh; 2],
        ),
        row(
            "of another release",
            hello().alpn(&[b"culvert/9"]),
            [Protocol; 2],
        ),
        row(
            "with an empty protocol",
            hello().alpn(&[b"", CULVERT_TCP]),
            [Reset, Relayed],
        ),
        row("of TLS 1.2", hello().of_version([3, 3]), [Version; 2]),
        row("of TLS 1.1", hello().of_version([3, 2]), [Version; 2]),
        row("of TLS 1.0", hello().of_version([3, 1]), [Version; 2]),
        row("of SSL 3", hello().of_version([3, 0]), [Version; 2]),
    ]
}

/// The application's bytes are never sent: a hello that is taken for a peer's reaches no application.
pub fn table(sandbox: &Sandbox) -> anyhow::Result<()> {
    among_bystanders(sandbox, || {
        for pod in ["strict", "open"] {
            for row in rows(&server_name(pod)) {
                one(sandbox, pod, row)?;
            }
        }
        Ok(())
    })
}

fn one(sandbox: &Sandbox, pod: &str, row: Row) -> anyhow::Result<()> {
    let (expected, error) = if pod == "strict" {
        row.strict
    } else {
        row.open
    };
    let bytes = row.hello.bytes();
    let attack = || Ok(say(dial(sandbox, pod)?, &bytes)?);
    let reply = match error {
        Some(error) => counted(sandbox, pod, (error, 1), attack),
        None => attack(),
    };
    let reply = reply.with_context(|| format!("{pod}, a ClientHello {}", row.what))?;
    ensure!(
        reply == expected,
        "{pod}, a ClientHello {}: {reply:?}, expected {expected:?}",
        row.what
    );
    Ok(())
}

fn refragmented(hello: &[u8], size: usize) -> Vec<u8> {
    let record = |piece: &[u8]| {
        let length = (piece.len() as u16).to_be_bytes();
        [&hello[..3], &length, piece].concat()
    };
    hello[5..].chunks(size).flat_map(record).collect()
}

fn bytewise(bytes: Vec<u8>) -> Vec<Vec<u8>> {
    bytes.chunks(1).map(<[u8]>::to_vec).collect()
}

type Pieces = Box<dyn FnOnce(Vec<u8>) -> Vec<Vec<u8>>>;

/// Each is let in, with the application's answer: the transcript is the same for both sides.
pub fn pieces(sandbox: &Sandbox) -> anyhow::Result<()> {
    let authority = authority(sandbox)?;
    for pod in ["strict", "open"] {
        let mut ways: Vec<(String, Pieces)> = vec![
            ("byte by byte".into(), Box::new(bytewise)),
            (
                "in records of a byte".into(),
                Box::new(|hello| vec![refragmented(&hello, 1)]),
            ),
            (
                "in records of 100, byte by byte".into(),
                Box::new(|hello| bytewise(refragmented(&hello, 100))),
            ),
        ];
        for at in [1, 2, 3, 4, 5, 6, 9, 10, 43, 44, 100, 500] {
            let cut: Pieces =
                Box::new(move |hello| vec![hello[..at].to_vec(), hello[at..].to_vec()]);
            ways.push((format!("cut at {at}"), cut));
        }
        for (what, pieces) in ways {
            let hello = Hello::mesh(pod, b"in pieces");
            let own = Some(authority.sign("plain")?);
            let ending = tls::connect_with(
                &sandbox.pod("plain"),
                at(sandbox, pod)?,
                &hello,
                own,
                pieces,
            )?;
            ensure!(
                ending == Ending::Answered(b"in pieces".to_vec()),
                "{pod}, {what}: {ending:?}"
            );
        }
    }
    empty_records(sandbox)
}

/// RFC 8446, section 5.1: no handshake record is empty.
fn empty_records(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (pod, expected) in [("strict", Reply::Closed), ("open", Reply::Echoed)] {
        let hello = ClientHello::new(server_name(pod).as_bytes()).records(100);
        let bytes = [&[22, 3, 1, 0, 0][..], &hello].concat();
        let reply = say(dial(sandbox, pod)?, &bytes)?;
        ensure!(reply == expected, "{pod}, an empty record first: {reply:?}");
    }
    Ok(())
}

/// What is longer than 16 KiB is no ClientHello of a peer.
pub fn oversized(sandbox: &Sandbox) -> anyhow::Result<()> {
    among_bystanders(sandbox, || {
        for size in [17 << 10, 60 << 10] {
            let hello = ClientHello::new(server_name("strict").as_bytes())
                .padded(size)
                .bytes();
            let reply = counted(sandbox, "strict", ("identity required", 1), || {
                Ok(say(dial(sandbox, "strict")?, &hello)?)
            })?;
            ensure!(reply == Reply::Closed, "{size} bytes: {reply:?}");
            let hello = ClientHello::new(server_name("open").as_bytes())
                .padded(size)
                .bytes();
            let reply = say(dial(sandbox, "open")?, &hello)?;
            ensure!(
                reply == Reply::Echoed,
                "{size} bytes to a permissive pod: {reply:?}"
            );
        }
        endless(sandbox)
    })
}

/// A handshake message of 16 MiB, announced and begun.
fn endless(sandbox: &Sandbox) -> anyhow::Result<()> {
    let record = [
        &[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..],
        &[0; (16 << 10) - 4],
    ]
    .concat();
    let reply = counted(sandbox, "strict", ("identity required", 1), || {
        Ok(say(dial(sandbox, "strict")?, &record.repeat(64))?)
    })?;
    ensure!(reply == Reply::Closed, "endless: {reply:?}");
    Ok(())
}

/// A byte each 200 ms is no progress: the limit is on the whole.
pub fn dripping(sandbox: &Sandbox) -> anyhow::Result<()> {
    among_bystanders(sandbox, || {
        let begin = Instant::now();
        counted(sandbox, "strict", ("tls detection timeout", 20), || {
            let streams = (0..20)
                .map(|_| dial(sandbox, "strict"))
                .collect::<Result<Vec<_>, _>>()?;
            drip(
                streams,
                &ClientHello::new(server_name("strict").as_bytes()).bytes(),
            )
        })?;
        let took = begin.elapsed();
        ensure!(
            (8..20).contains(&took.as_secs()),
            "cut off after {took:?}, expected about 10 s"
        );
        Ok(())
    })
}

fn drip(mut streams: Vec<std::net::TcpStream>, bytes: &[u8]) -> anyhow::Result<()> {
    for byte in bytes {
        streams.retain_mut(|stream| stream.write_all(&[*byte]).is_ok());
        if streams.is_empty() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
    anyhow::bail!("{} connections were let drip to the end", streams.len())
}

/// openssl offers TLS 1.3 only as far as it is told.
pub fn openssl(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pod in ["strict", "open"] {
        let versions = counted(sandbox, pod, ("tls", 1), || {
            s_client(sandbox, pod, &["-tls1_2"])
        })?;
        let said = [versions.stdout, versions.stderr].concat();
        ensure!(said.contains("protocol version"), "{pod}: {said}");
        // TLS 1.3 without a certificate: openssl ends its part before the server says no.
        let nobody = counted(sandbox, pod, ("tls", 1), || {
            s_client(sandbox, pod, &["-tls1_3"])
        })?;
        let said = [nobody.stdout, nobody.stderr].concat();
        ensure!(said.contains("certificate required"), "{pod}: {said}");
    }
    Ok(())
}

fn s_client(sandbox: &Sandbox, pod: &str, flags: &[&str]) -> anyhow::Result<Output> {
    let (addr, name) = (at(sandbox, pod)?.to_string(), server_name(pod));
    let common = [
        "openssl",
        "s_client",
        "-connect",
        &addr,
        "-servername",
        &name,
        "-alpn",
        "culvert/tcp",
    ];
    // stdin stays open until the server ends it.
    let mut running = sandbox.spawn("plain", &[&common[..], flags].concat())?;
    let ended = culvert_tests::wait::wait_for("openssl to end", crate::ground::SOON, || {
        ensure!(!running.is_running()?, "it runs");
        Ok::<_, anyhow::Error>(())
    });
    ended?;
    running.finish(crate::ground::SOON)
}

/// The extension alone, and with a ticket that no server made; then data at once.
pub fn early_data(sandbox: &Sandbox) -> anyhow::Result<()> {
    for pod in ["strict", "open"] {
        let hello = ClientHello::new(server_name(pod).as_bytes())
            .early()
            .bytes();
        let early = [&[23, 3, 3, 0, 64][..], &[0x5a; 64]].concat();
        counted(sandbox, pod, ("tls", 1), || {
            let mut stream = dial(sandbox, pod)?;
            stream.write_all(&[&hello[..], &early, &[23, 3, 3, 0, 32], &[1; 32]].concat())?;
            stream.set_read_timeout(Some(Duration::from_millis(500)))?;
            let mut answer = Vec::new();
            // The handshake goes on, without the early data, until the client leaves.
            let _ = stream.read_to_end(&mut answer);
            drop(stream);
            ensure!(
                !answer.windows(8).any(|bytes| bytes == [0x5a; 8]),
                "{pod}: early data was answered"
            );
            Ok(())
        })
        .with_context(|| format!("{pod}: early data"))?;
    }
    Ok(())
}

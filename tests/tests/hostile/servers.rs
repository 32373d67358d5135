// SPDX-License-Identifier: Apache-2.0
//! Servers that pretend to be a pod of the mesh: traffic for `strict` is led to `outside`, while the
//! client's node still knows that the address is `strict`'s.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, anyhow, ensure};
use culvert_tests::{
    sandbox::{Daemon, Sandbox},
    tls::{
        self, Credentials,
        forge::{self, Side},
        insider::{CERTIFICATE_REQUEST, Insider, KEY_UPDATE},
    },
    wait::wait_for,
};
use rustls::ContentType;

use crate::ground::{SOON, authority, ip};

const PORT: u16 = 7100;

/// As long as it is held, `outside` has the address of `strict`.
struct Stolen<'a> {
    sandbox: &'a Sandbox,
    own: String,
}

impl<'a> Stolen<'a> {
    fn new(sandbox: &'a Sandbox) -> anyhow::Result<Self> {
        let own = format!("{}/32", sandbox.ip("strict")?);
        let thief = sandbox.ip("outside")?.to_string();
        let stolen = Self { sandbox, own };
        ip(
            sandbox.pod("outside").path(),
            &["addr", "add", &stolen.own, "dev", "lo"],
        )?;
        ip(
            sandbox.node("n2").path(),
            &["route", "add", &stolen.own, "via", &thief],
        )?;
        Ok(stolen)
    }
}

impl Drop for Stolen<'_> {
    fn drop(&mut self) {
        let route = ip(self.sandbox.node("n2").path(), &["route", "del", &self.own]);
        let addr = ip(
            self.sandbox.pod("outside").path(),
            &["addr", "del", &self.own, "dev", "lo"],
        );
        for error in [route, addr].into_iter().filter_map(Result::err) {
            eprintln!("give the address back: {error:#}");
        }
    }
}

fn outbound_errors(sandbox: &Sandbox, error: &str) -> anyhow::Result<f64> {
    let labels = [("pod", "mesh"), ("error", error)];
    sandbox.metric(Daemon::Proxy("n1"), "outbound_tcp_errors_total", &labels)
}

fn counted<T>(
    sandbox: &Sandbox,
    (error, times): (&str, f64),
    attack: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let before = outbound_errors(sandbox, error)?;
    let result = attack()?;
    wait_for(&format!("{times} more errors `{error}`"), SOON, || {
        let more = outbound_errors(sandbox, error)? - before;
        ensure!(more == times, "there are {more}");
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(result)
}

fn addr(sandbox: &Sandbox) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(sandbox.ip("strict")?, PORT))
}

fn joined<T>(server: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    server.join().map_err(|_| anyhow!("the server panicked"))?
}

/// The application of `mesh` dials and sends; it must be refused.
fn client_is_refused(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = ["--send", "for strict only", "--patience", "10"];
    let report = sandbox.connect("mesh", &addr(sandbox)?.to_string(), &flags)?;
    report.refused()?;
    Ok(())
}

pub fn forged(sandbox: &Sandbox) -> anyhow::Result<()> {
    let authority = authority(sandbox)?;
    let _stolen = Stolen::new(sandbox)?;
    for forged in forge::all(&authority, "strict", Side::Server)? {
        gets_nothing(sandbox, forged.credentials, forged.alert)
            .with_context(|| format!("a server whose certificate {}", forged.what))?;
    }
    let other = authority.sign("other")?;
    gets_nothing(sandbox, other, "BadCertificate").context("another pod's certificate")?;
    let long = authority.sign("strict")?.with_chain_of(1000);
    heard_nothing(sandbox, long).context("a long chain")?;
    Ok(())
}

fn gets_nothing(sandbox: &Sandbox, own: Credentials, alert: &str) -> anyhow::Result<()> {
    let end = heard_nothing(sandbox, own)?;
    let expected = format!("received fatal alert: {alert}");
    ensure!(
        end == expected,
        "it was told {end:?}, expected {expected:?}"
    );
    Ok(())
}

/// What the server was told instead of the application's bytes.
fn heard_nothing(sandbox: &Sandbox, own: Credentials) -> anyhow::Result<String> {
    let server = tls::pretend(&sandbox.pod("outside"), addr(sandbox)?, Some(own))?;
    counted(sandbox, ("tls", 1.0), || client_is_refused(sandbox))?;
    let overheard = joined(server)?;
    ensure!(
        overheard.plaintext.is_empty(),
        "it heard {:?}",
        overheard.plaintext
    );
    Ok(overheard.end)
}

/// A server of raw bytes, for `times` connections: the first bytes of each that it got.
fn raw(
    sandbox: &Sandbox,
    times: usize,
    say: Vec<u8>,
) -> anyhow::Result<JoinHandle<anyhow::Result<Vec<Vec<u8>>>>> {
    let addr = addr(sandbox)?;
    let listener = sandbox
        .pod("outside")
        .run(move || Ok(TcpListener::bind(addr)?))?;
    Ok(thread::spawn(move || {
        (0..times)
            .map(|_| Ok(hear(tls::accept(&listener)?, &say)?))
            .collect()
    }))
}

fn hear(mut stream: TcpStream, say: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(SOON))?;
    let mut heard = vec![0; 16 << 10];
    let n = stream.read(&mut heard)?;
    heard.truncate(n);
    // The client may have gone before all is written.
    let _ = stream.write_all(say);
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut heard);
    Ok(heard)
}

/// A ServerHello of TLS 1.2, with the sentinel that says so (RFC 8446, section 4.1.3).
fn downgrade() -> Vec<u8> {
    let mut hello = vec![22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3];
    hello.extend([7; 24]);
    hello.extend(b"DOWNGRD\x01");
    hello.extend([0, 0xc0, 0x2b, 0]);
    hello
}

pub fn others(sandbox: &Sandbox) -> anyhow::Result<()> {
    let _stolen = Stolen::new(sandbox)?;
    // What is not TLS at all is dialled once more, in TLS again.
    for (what, say, error, times) in [
        ("plaintext", b"220 ready\r\n".to_vec(), "not tls", 2),
        ("TLS 1.2", downgrade(), "tls", 1),
        ("an alert", vec![21, 3, 3, 0, 2, 2, 40], "tls", 1),
        ("nothing", Vec::new(), "tls", 1),
        (
            "an endless handshake message",
            [22, 3, 3, 0x40, 0, 2, 0xff, 0xff, 0xff]
                .into_iter()
                .chain([0; 100_000])
                .collect(),
            "tls",
            1,
        ),
        (
            "an oversized record",
            [22, 3, 3, 0xff, 0xff]
                .into_iter()
                .chain([0; 70_000])
                .collect(),
            "tls",
            1,
        ),
    ] {
        let server = raw(sandbox, times, say)?;
        counted(sandbox, (error, times as f64), || {
            client_is_refused(sandbox)
        })
        .with_context(|| format!("a server that says {what}"))?;
        for heard in joined(server)? {
            ensure!(
                heard.first() == Some(&22),
                "{what}: the server was told {heard:?}"
            );
            let clear = heard.windows(10).any(|bytes| bytes == b"for strict");
            ensure!(!clear, "{what}: the server got the application's bytes");
        }
    }
    Ok(())
}

/// Proves to be `strict`, echoes once, and then does harm.
fn turning(
    sandbox: &Sandbox,
    harm: impl FnOnce(&mut Insider) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<JoinHandle<anyhow::Result<Option<u8>>>> {
    let own = authority(sandbox)?.sign("strict")?;
    let addr = addr(sandbox)?;
    let listener = sandbox
        .pod("outside")
        .run(move || Ok(TcpListener::bind(addr)?))?;
    Ok(thread::spawn(move || {
        let tcp = tls::accept(&listener)?;
        tcp.set_read_timeout(Some(SOON))?;
        let mut insider = Insider::server(tcp, own)?;

        insider.send(ContentType::ApplicationData, b"par")?;
        harm(&mut insider)?;
        Ok(insider.end().ok())
    }))
}

/// The application never sees a clean end, and never more than what was said.
pub fn insider(sandbox: &Sandbox) -> anyhow::Result<()> {
    let _stolen = Stolen::new(sandbox)?;
    type Harm = fn(&mut Insider) -> anyhow::Result<()>;
    let harms: [(&str, Harm); 6] = [
        ("asks for a certificate again", |peer| {
            peer.send(ContentType::Handshake, CERTIFICATE_REQUEST)
        }),
        ("updates its key and goes on with the old one", |peer| {
            peer.flood(ContentType::Handshake, KEY_UPDATE, 2)
        }),
        ("goes on in plaintext", |peer| {
            Ok(peer.tcp.write_all(b"the rest in the clear, and more")?)
        }),
        ("sends a record that is too long", |peer| {
            Ok(peer.tcp.write_all(&[23, 3, 3, 0xff, 0xff, 0])?)
        }),
        ("renegotiates", |peer| {
            peer.send(ContentType::Handshake, &[0, 0, 0, 0])
        }),
        ("ends without close_notify", |peer| {
            Ok(peer.tcp.shutdown(Shutdown::Write)?)
        }),
    ];
    for (what, harm) in harms {
        let server = turning(sandbox, harm)?;
        let report = counted(sandbox, ("tls", 1.0), || {
            let flags = ["--exchange", "to-end", "--patience", "10"];
            sandbox.connect("mesh", &addr(sandbox)?.to_string(), &flags)
        })
        .with_context(|| format!("a server that {what}"))?;
        report
            .none("read: ECONNRESET")
            .with_context(|| format!("a server that {what}"))?;
        joined(server).with_context(|| format!("a server that {what}"))?;
    }
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0
//! Too many of everything.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    process::run,
    sandbox::{Daemon, Sandbox},
    tls::{Hello, hello::ClientHello, insider::Idle, server_name},
    wait::wait_for,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::ground::{SOON, among_bystanders, at, authority, counted, errors, memory};

/// What this machine lets a process open, but ten thousand at most.
fn many() -> anyhow::Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    ensure!(
        most > 11_000,
        "RLIMIT_NOFILE is {most}, expected room for 10,000 connections"
    );
    Ok(10_000)
}

/// Connections of the attacker's pod to another, each with these first bytes.
fn open(
    sandbox: &Sandbox,
    pod: &str,
    count: usize,
    first: Vec<u8>,
) -> anyhow::Result<Vec<TcpStream>> {
    let addr = at(sandbox, pod)?;
    sandbox.pod("plain").run(move || {
        let mut all = Vec::with_capacity(count);
        for n in 0..count {
            let mut stream = TcpStream::connect_timeout(&addr, SOON)
                .with_context(|| format!("connection {n}"))?;
            stream.write_all(&first)?;
            all.push(stream);
        }
        Ok(all)
    })
}

/// The slowest of twenty new connections to a pod that is not attacked.
fn latency(sandbox: &Sandbox) -> anyhow::Result<Duration> {
    let report = sandbox.connect(
        "mesh",
        &at(sandbox, "other")?.to_string(),
        &["--count", "20"],
    )?;
    report.all()?;
    Ok(Duration::from_micros(
        report.connect.max_us + report.exchange.max_us,
    ))
}

fn pending(sandbox: &Sandbox) -> anyhow::Result<f64> {
    sandbox.metric(Daemon::Proxy("n2"), "proxy_inbound_handshakes", &[])
}

/// One address may have 5,000 handshakes with a pod under way: what it dials beyond that is shed, and
/// whoever comes from elsewhere is served.
pub fn slowloris(sandbox: &Sandbox) -> anyhow::Result<()> {
    let many = many()?;
    let before = errors(sandbox, "strict", "loadshed")?;
    among_bystanders(sandbox, || {
        let half = ClientHello::new(server_name("strict").as_bytes()).bytes()[..50].to_vec();
        let began = Instant::now();
        let addr = at(sandbox, "strict")?;
        let held = sandbox.pod("plain").run(move || {
            let mut all = Vec::new();
            for _ in 0..many {
                if let Ok(mut stream) = TcpStream::connect_timeout(&addr, SOON) {
                    // Those beyond the limit are reset.
                    let _ = stream.write_all(&half);
                    all.push(stream);
                }
                // The first are let go after ten seconds: by then it must be over.
                if began.elapsed() > Duration::from_secs(8) {
                    break;
                }
            }
            Ok(all)
        })?;
        let waiting = pending(sandbox)?;
        eprintln!("  {} half ClientHellos, {waiting} wait", held.len());
        ensure!(waiting <= 5_050.0, "{waiting} handshakes wait");
        ensure!(
            held.len() < 6_000 || errors(sandbox, "strict", "loadshed")? > before,
            "none of {} was shed",
            held.len()
        );
        sandbox.answers("mesh", "strict", crate::ground::ECHO)?;
        latency(sandbox)?;
        drop(held);
        wait_for("the handshakes to be given up", SOON, || {
            let waiting = pending(sandbox)?;
            ensure!(waiting == 0.0, "{waiting} wait");
            Ok::<_, anyhow::Error>(())
        })
    })
}

/// Before the first byte, and after the handshake.
pub fn idle(sandbox: &Sandbox) -> anyhow::Result<()> {
    let many = many()?;
    among_bystanders(sandbox, || {
        let (calm, before) = (latency(sandbox)?, memory(sandbox, "n2")?);
        established(sandbox, many / 3, (calm, before))?;
        // What those took is not given back: these may have cost less than is seen.
        silent(sandbox, many, (calm, before))
    })
}

/// The silent are cut off after ten seconds: so long may the first ones last while the others come.
const HASTE: Duration = Duration::from_secs(7);

/// As many as one pod may have, half of them from each of two addresses.
fn silent(sandbox: &Sandbox, many: usize, (calm, before): (Duration, u64)) -> anyhow::Result<()> {
    let cut = timeouts(sandbox)?;
    let addr = at(sandbox, "strict")?;
    let clients =
        ["plain", "outside"].map(|pod| sandbox.pod(pod).spawn(move || Ok(hurried(addr, many / 2))));
    let mut held = Vec::new();
    for client in clients {
        let opened = client?.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        held.extend(opened);
    }
    let shed = errors(sandbox, "strict", "loadshed")?;
    let waiting = accepted(sandbox, held.len(), cut)?;
    let each = memory(sandbox, "n2")?.saturating_sub(before) / waiting.max(1);
    let busy = latency(sandbox)?;
    eprintln!(
        "  {} silent connections, {waiting} at once: {each} bytes each; latency {calm:?}, then \
         {busy:?}",
        held.len()
    );
    ensure!(shed == 0.0, "{shed} were shed");
    ensure!(waiting > 1_000, "only {waiting} were there at once");
    ensure!(each < 40 << 10, "a silent connection costs {each} bytes");
    wait_for("silent connections to be cut off", SOON * 3, || {
        let cut = timeouts(sandbox)? - cut;
        ensure!(cut == held.len() as f64, "{cut} of {}", held.len());
        Ok::<_, anyhow::Error>(())
    })
}

fn timeouts(sandbox: &Sandbox) -> anyhow::Result<f64> {
    errors(sandbox, "strict", "tls detection timeout")
}

fn hurried(addr: SocketAddr, count: usize) -> Vec<TcpStream> {
    let began = Instant::now();
    let more = (0..count).take_while(|_| began.elapsed() < HASTE);
    let dialled = more.map(|_| TcpStream::connect_timeout(&addr, SOON));
    dialled.filter_map(Result::ok).collect()
}

/// How many wait when the last one was taken; on a slow machine the first may have been cut off.
fn accepted(sandbox: &Sandbox, opened: usize, cut: f64) -> anyhow::Result<u64> {
    wait_for("the connections to be accepted", SOON * 3, || {
        let waiting = pending(sandbox)?;
        let taken = waiting + timeouts(sandbox)? - cut;
        ensure!(taken >= opened as f64, "{taken} of {opened}");
        Ok::<_, anyhow::Error>(waiting as u64)
    })
}

fn per_connection(sandbox: &Sandbox, before: u64, count: usize) -> anyhow::Result<u64> {
    let label = "proxy_open_connections";
    sandbox.metric_reaches(Daemon::Proxy("n2"), label, &[], count as f64)?;
    Ok(memory(sandbox, "n2")?.saturating_sub(before) / count as u64)
}

/// Let in, and then silent.
fn established(
    sandbox: &Sandbox,
    many: usize,
    (calm, before): (Duration, u64),
) -> anyhow::Result<()> {
    let own = authority(sandbox)?.sign("plain")?;
    let idle = Arc::new(Idle::new(&Hello::mesh("strict", b""), own)?);
    let addr = at(sandbox, "strict")?;
    let held = sandbox.pod("plain").run(move || {
        (0..many)
            .map(|n| idle.connect(addr).with_context(|| format!("session {n}")))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    let each = per_connection(sandbox, before, held.len())?;
    let busy = latency(sandbox)?;
    eprintln!(
        "  {} idle sessions: {each} bytes each; latency {calm:?}, then {busy:?}",
        held.len()
    );
    ensure!(each < 32 << 10, "an idle session costs {each} bytes");
    drop(held);
    // Reset, since the tickets were left unread: passed on, and no error.
    wait_for("the sessions to be over", SOON * 3, || {
        let open = sandbox.metric(Daemon::Proxy("n2"), "proxy_open_connections", &[])?;
        ensure!(open < 10.0, "{open} are open");
        Ok::<_, anyhow::Error>(())
    })
}

/// The header of a SYN; the kernel fills in nothing of it.
fn syn_segment(from: Ipv4Addr, to: SocketAddrV4, source: u16, sequence: u32) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&source.to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    (segment[12], segment[13]) = (5 << 4, 2);
    segment[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    let pseudo = [
        &from.octets()[..],
        &to.ip().octets(),
        &[0, 6, 0, 20],
        &segment,
    ]
    .concat();
    let sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = ((folded & 0xffff) + (folded >> 16)) as u16;
    segment[16..18].copy_from_slice(&(!folded).to_be_bytes());
    segment
}

fn spoof(to: SocketAddrV4, count: u32) -> anyhow::Result<()> {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
    raw.set_header_included_v4(true)?;
    for n in 0..count {
        // TEST-NET-2: nobody answers, nobody resets.
        let from = Ipv4Addr::from(0xc633_6400 | (n & 0xff));
        let segment = syn_segment(from, to, (1024 + n / 256) as u16, n);
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(from.octets());
        packet.extend(to.ip().octets());
        packet.extend(segment);
        // A full queue of the interface is no failure of the flood.
        let _ = raw.send_to(&packet, &SockAddr::from(SocketAddr::V4(to)));
    }
    Ok(())
}

fn tcp_ext(sandbox: &Sandbox, pod: &str, counter: &str) -> anyhow::Result<u64> {
    let netns = sandbox.pod(pod);
    let name = netns
        .path()
        .file_name()
        .and_then(|name| name.to_str())
        .context("no name")?;
    let mut nstat = std::process::Command::new("ip");
    nstat.args(["netns", "exec", name, "cat", "/proc/net/netstat"]);
    let text = run(&mut nstat, SOON)?.ok()?.stdout;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (
        lines.next().context("no names")?,
        lines.next().context("no values")?,
    );
    let mut pairs = names.split(' ').zip(values.split(' '));
    let found = pairs
        .find(|(name, _)| *name == counter)
        .context("no counter")?;
    Ok(found.1.parse()?)
}

/// Half-open connections fill the pod's own queue; the kernel then answers with cookies.
pub fn syn(sandbox: &Sandbox) -> anyhow::Result<()> {
    let SocketAddr::V4(to) = at(sandbox, "strict")? else {
        anyhow::bail!("strict has no IPv4 address");
    };
    let before = tcp_ext(sandbox, "strict", "SyncookiesSent")?;
    among_bystanders(sandbox, || {
        let calm = latency(sandbox)?;
        let flood = sandbox.pod("plain").spawn(move || spoof(to, 200_000))?;
        let during = latency(sandbox)?;
        sandbox
            .answers("mesh", "strict", crate::ground::ECHO)
            .context("during the flood")?;
        flood
            .join()
            .map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        let cookies = tcp_ext(sandbox, "strict", "SyncookiesSent")? - before;
        eprintln!("  {cookies} cookies; latency of another pod {calm:?}, then {during:?}");
        ensure!(
            cookies > 0,
            "the flood did not fill the queue of half-open connections"
        );
        refused_in_plaintext(sandbox)?;
        sandbox
            .answers("mesh", "strict", crate::ground::ECHO)
            .context("after the flood")
    })
}

/// A cookie's connection comes to the proxy like every other.
fn refused_in_plaintext(sandbox: &Sandbox) -> anyhow::Result<()> {
    counted(sandbox, "strict", ("identity required", 1), || {
        let mut stream = open(sandbox, "strict", 1, b"plaintext".to_vec())?
            .pop()
            .context("no connection")?;
        stream.set_read_timeout(Some(SOON))?;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        ensure!(
            answer.is_empty(),
            "plaintext was answered: {read:?}, {answer:?}"
        );
        Ok(())
    })
}

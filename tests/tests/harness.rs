// SPDX-License-Identifier: Apache-2.0
//! The harness itself, without any mesh: what it shows of a plain network namespace is true.

use std::{
    net::SocketAddr,
    process::{self, Command},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{
        hold::Held,
        report::{Closed, Report},
    },
    binaries,
    capture::Capture,
    netns::Netns,
    process::{Running, run},
    require,
    tls::{self, Authority, Ending, Hello},
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(10);

/// A network namespace with a loopback and a server in it.
struct Place {
    name: String,
    server: Option<Running>,
}

impl Place {
    fn new(name: &str, listen: &[&str]) -> anyhow::Result<Self> {
        let name = format!("t{}-{name}", process::id());
        let mut place = Self { name, server: None };
        place.ip(&["netns", "add", &place.name])?;
        place.ip(&["-n", &place.name, "link", "set", "lo", "up"])?;
        let flags = listen.iter().flat_map(|listen| ["--listen", listen]);
        let args: Vec<_> = ["serve", "--log"].into_iter().chain(flags).collect();
        place.server = Some(place.start(&args)?);
        wait_for("the server", SOON, || {
            place.connect("7000", &[])?.all().map(|_| ())
        })?;
        Ok(place)
    }

    fn ip(&self, args: &[&str]) -> anyhow::Result<()> {
        run(Command::new("ip").args(args), SOON)?.ok()?;
        Ok(())
    }

    fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(binaries::testapp()?)
            .args(args);
        Ok(command)
    }

    fn start(&self, args: &[&str]) -> anyhow::Result<Running> {
        Running::start(&mut self.command(args)?)
    }

    fn connect(&self, port: &str, flags: &[&str]) -> anyhow::Result<Report> {
        let target = format!("127.0.0.1:{port}");
        run(
            &mut self.command(&[&["connect", &target], flags].concat())?,
            SOON,
        )?
        .json()
    }

    fn netns(&self) -> Netns {
        Netns::named(&self.name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server = None;
        if let Err(error) = self.ip(&["netns", "del", &self.name]) {
            eprintln!("{} is left behind: {error:#}", self.name);
        }
    }
}

#[test]
fn servers_do_what_they_are_named_for() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let listen = [
        "7000=echo",
        "7001=whoami",
        "7003=count",
        "7004=reset",
        "7005=close",
        "7006=late",
    ];
    let place = Place::new("servers", &listen)?;
    place
        .connect("7000", &["--count", "100", "--concurrent", "100"])?
        .all()?;
    place.connect("7000", &["--bytes", "5000000"])?.all()?;
    let flags = ["--exchange", "line", "--bind", "127.0.0.1:33333"];
    let whoami = place.connect("7001", &flags)?.whoami()?;
    ensure!(whoami.peer.port() == 33333, "{whoami:?}");
    let flags = ["--exchange", "half-close", "--bytes", "70000"];
    ensure!(place.connect("7003", &flags)?.seen()?.reply == "70000\n");
    place
        .connect("7004", &["--exchange", "to-end"])?
        .none("read: ECONNRESET")?;
    ensure!(
        place
            .connect("7005", &["--exchange", "to-end"])?
            .seen()?
            .reply
            .is_empty()
    );
    ensure!(
        place
            .connect("7006", &["--exchange", "greeting"])?
            .exchange
            .p50_us
            > 300_000
    );
    place.connect("7999", &[])?.none("connect: ECONNREFUSED")?;
    Ok(())
}

#[test]
fn resets_are_told_from_ends() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut place = Place::new("ends", &["7000=echo"])?;
    place.connect("7000", &["--reset"])?.all()?;
    let server = place.server.as_mut().context("no server")?;
    let ends: Vec<Closed> = [server.next(SOON)?, server.next(SOON)?].into();
    let ends: Vec<_> = ends.iter().map(|closed| closed.end.as_str()).collect();
    ensure!(ends == ["fin", "ECONNRESET"], "{ends:?}");
    Ok(())
}

#[test]
fn held_connections_are_used_when_told() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut place = Place::new("held", &["7000=echo"])?;
    let mut hold = place.start(&["hold", "127.0.0.1:7000", "--connections", "3"])?;
    ensure!(hold.next::<Held>(SOON)?.working == 3);
    hold.say("again")?;
    ensure!(hold.next::<Held>(SOON)?.working == 3);
    place.server = None;
    hold.say("and when the server is dead")?;
    let held: Held = hold.next(SOON)?;
    ensure!(
        held.working == 0 && held.broken.values().sum::<u64>() == 3,
        "{held:?}"
    );
    Ok(())
}

#[test]
fn captures_tell_plaintext_from_tls() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let place = Place::new("capture", &["7000=echo"])?;
    let capture = Capture::start(&place.netns())?;
    place
        .connect("7000", &["--send", "a marker in the clear"])?
        .all()?;
    let addr: SocketAddr = "127.0.0.1:7443".parse()?;
    let authority = Authority::unknown()?;
    let server = tls::pretend(&place.netns(), addr, Some(authority.sign("server")?))?;
    let hello = Hello::mesh("server", b"a marker under TLS");
    let ending = tls::connect(
        &place.netns(),
        addr,
        &hello,
        Some(authority.sign("client")?),
    )?;
    let overheard = server
        .join()
        .map_err(|_| anyhow::anyhow!("it panicked"))??;
    ensure!(
        overheard.plaintext == b"a marker under TLS",
        "{overheard:?}"
    );
    ensure!(matches!(ending, Ending::Refused(_)), "{ending:?}");
    let captured = capture.stop()?;
    ensure!(captured.count(b"a marker in the clear") > 0);
    ensure!(captured.count(b"a marker under TLS") == 0);
    ensure!(captured.tls_only(addr.ip(), 7000).is_err());
    captured.tls_only(addr.ip(), 7443)
}

// SPDX-License-Identifier: Apache-2.0
//! The programs of the demonstration: a server that answers lines and a client that sends them. They
//! know nothing of the mesh: names, sockets, lines.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    thread,
    time::{Duration, Instant},
};

use super::evidence::Report;
use crate::{
    args::DemoApp,
    sandbox::error::{Doing, Result},
};

const PATIENCE: Duration = Duration::from_secs(10);
const REPORT: Duration = Duration::from_secs(1);

/// Runs one of the programs. Returns only when it can't go on.
pub fn run(app: DemoApp) -> Result<()> {
    match app {
        DemoApp::Server { port, upstream } => serve(port, upstream).doing(|| "serve".into()),
        DemoApp::Client {
            target,
            payload,
            interval,
        } => ask_forever(&target, &payload, interval).doing(|| "ask".into()),
    }
}

fn serve(port: u16, upstream: Option<String>) -> io::Result<()> {
    let listener = bind(port)?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        let upstream = upstream.clone();
        thread::spawn(move || {
            if let Err(error) = answer(stream, upstream.as_deref()) {
                println!("a connection failed: {error}");
            }
        });
    }
}

/// Says whom it saw, what it was sent, and what its own upstream answered to the same.
fn answer(mut stream: TcpStream, upstream: Option<&str>) -> io::Result<()> {
    let peer = stream.peer_addr()?.ip().to_canonical();
    let name = nix::unistd::gethostname()?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        let mut reply = format!("{} saw {peer}: {line}", name.display());
        if let Some(upstream) = upstream {
            reply += &format!(" | {}", ask(upstream, &line)?.0);
        }
        stream.write_all(format!("{reply}\n").as_bytes())?;
    }
    Ok(())
}

/// Both families where there are both.
fn bind(port: u16) -> io::Result<TcpListener> {
    let both = TcpListener::bind(("::", port));
    both.or_else(|_| TcpListener::bind(("0.0.0.0", port)))
}

/// The answer, and the own address.
fn ask(target: &str, line: &str) -> io::Result<(String, std::net::IpAddr)> {
    let mut addrs = target.to_socket_addrs()?;
    let addr = addrs
        .next()
        .ok_or_else(|| io::Error::other(format!("{target} has no address")))?;
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let own = stream.local_addr()?.ip();
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((answer.trim_end().to_owned(), own))
}

fn ask_forever(target: &str, payload: &str, interval: Duration) -> io::Result<()> {
    let (mut report, mut said) = (Report::default(), Instant::now());
    let mut stdout = io::stdout();
    for number in 0_u64.. {
        let line = format!("{payload} {number}");
        match ask(target, &line) {
            Ok((answer, own)) if answer.contains(&line) => {
                report.ok += 1;
                report.mistaken += u64::from(!answer.contains(&format!(" saw {own}:")));
            }
            failed => {
                report.failed += 1;
                writeln!(stdout, "request {number} failed: {failed:?}")?;
            }
        }
        if said.elapsed() >= REPORT {
            writeln!(stdout, "{}", report.line())?;
            said = Instant::now();
        }
        thread::sleep(interval);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_servers_says_whom_each_saw() {
        let start = |upstream: Option<String>| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|e| panic!("{e}"));
            let addr = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
            thread::spawn(move || {
                let (stream, _) = listener.accept()?;
                answer(stream, upstream.as_deref())
            });
            addr.to_string()
        };
        let web = start(Some(start(None)));
        let (reply, own) = ask(&web, "hello").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            reply.matches(&format!(" saw {own}: hello")).count(),
            2,
            "{reply}"
        );
    }
}

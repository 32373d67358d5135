// SPDX-License-Identifier: Apache-2.0
//! Servers that each do one thing to every connection, a thread for each.

mod options;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    str::FromStr,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use socket2::SockRef;

pub use self::options::Options;
use super::{
    call::ring,
    report::{self, Closed, Whoami},
};

/// A thousand of them must fit.
const STACK: usize = 128 << 10;
const CHUNK: usize = 16 << 10;
/// Longer than any time-out of a proxy that waits for the first byte.
const LATE: Duration = Duration::from_millis(400);
/// Much longer than a request takes.
const HTTP_LATE: Duration = Duration::from_millis(50);
/// Longer than any time-out of a proxy for a peer that does not answer.
const PAUSE: Duration = Duration::from_secs(40);
/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Serve on ports.
#[derive(Args, Debug)]
pub struct Serve {
    /// `[ADDR:]PORT=BEHAVIOUR[+OPTION…]`, as often as wanted.
    #[arg(long, required = true)]
    pub listen: Vec<Listen>,
    /// Print how each connection ended.
    #[arg(long)]
    pub log: bool,
}

/// An address and what is done to its connections.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    addr: SocketAddr,
    behaviour: Behaviour,
    options: Options,
}

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Behaviour {
    /// Sends back what comes.
    Echo,
    /// Says the connection's addresses first, then echoes.
    Whoami,
    /// Says `220 ready` first, then echoes.
    Greet,
    /// Says `220 ready` after 400 ms, then echoes.
    Late,
    /// Reads to the end, then says how many bytes there were.
    Count,
    /// Answers the first byte with RST.
    Reset,
    /// Answers the first byte with FIN, and reads on.
    Close,
    /// Reads to the end, and never ends its own half.
    Keep,
    /// Says 8 MiB, then FIN.
    Pour,
    /// Says 1 MiB, then RST.
    Break,
    /// Reads nothing for 40 seconds, then as [`Self::Count`].
    Pause,
    /// Answers each HTTP/1.1 request without a body with the address that it came to.
    Http,
    /// As [`Self::Http`], 50 ms late.
    HttpLate,
    /// As [`Self::Echo`], one connection at a time, with io_uring(7).
    Ring,
}

// === impl Listen ===

impl FromStr for Listen {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (addr, behaviour) = text
            .split_once('=')
            .context("expected [ADDR:]PORT=BEHAVIOUR[+OPTION…]")?;
        let (behaviour, options) = behaviour.split_once('+').unwrap_or((behaviour, ""));
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Ok(Self {
            addr: addr.parse().or_else(|_| addr.parse().map(any))?,
            behaviour: <Behaviour as ValueEnum>::from_str(behaviour, false)
                .map_err(anyhow::Error::msg)?,
            options: options.parse()?,
        })
    }
}

/// Serves until it is killed.
pub fn run(serve: &Serve) -> anyhow::Result<()> {
    let log = serve.log;
    let mut threads = Vec::new();
    for listen in serve.listen.clone() {
        let listener = listener(listen).with_context(|| format!("bind {}", listen.addr))?;
        threads.push(thread::spawn(move || accept(&listener, listen, log)));
    }
    for thread in threads {
        let ended = thread.join();
        ensure!(ended.is_ok_and(|ended| ended.is_ok()), "a listener ended");
    }
    Ok(())
}

/// With a backlog for a thousand clients at once, where std's is 128.
fn listener(Listen { addr, options, .. }: Listen) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(addr);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, options.protocol())?;
    socket.set_reuse_address(true)?;
    options.set(&socket)?;
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, listen: Listen, log: bool) -> io::Result<()> {
    if listen.behaviour == Behaviour::Ring {
        return ring::serve(listener);
    }
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.raw_os_error() == Some(nix::libc::ECONNABORTED) => continue,
            Err(error) => return Err(error),
        };
        let serve = move || {
            let (end, bytes) = serve_one(stream, listen.behaviour);
            let port = listen.addr.port();
            let closed = Closed {
                port,
                peer,
                end,
                bytes,
            };
            if log && report::say(&closed).is_err() {
                eprintln!("could not print {closed:?}");
            }
        };
        thread::Builder::new().stack_size(STACK).spawn(serve)?;
    }
}

fn serve_one(mut stream: TcpStream, behaviour: Behaviour) -> (String, u64) {
    let mut bytes = 0;
    let end = match behave(&mut stream, behaviour, &mut bytes) {
        Ok(()) => "fin".to_owned(),
        Err(error) => report::name(&error),
    };
    (end, bytes)
}

fn behave(stream: &mut TcpStream, behaviour: Behaviour, bytes: &mut u64) -> io::Result<()> {
    match behaviour {
        Behaviour::Echo | Behaviour::Ring => {}
        Behaviour::Whoami => writeln!(stream, "{}", whoami(stream)?)?,
        Behaviour::Greet => stream.write_all(b"220 ready\n")?,
        Behaviour::Late => {
            thread::sleep(LATE);
            stream.write_all(b"220 ready\n")?;
        }
        Behaviour::Count => {
            read_all(stream, bytes)?;
            return writeln!(stream, "{bytes}");
        }
        Behaviour::Pour => return stream.write_all(&vec![b'p'; 8 << 20]),
        Behaviour::Break => {
            stream.write_all(&vec![b'b'; 1 << 20])?;
            return SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
        Behaviour::Pause => {
            thread::sleep(PAUSE);
            read_all(stream, bytes)?;
            return writeln!(stream, "{bytes}");
        }
        Behaviour::Keep => {
            read_all(stream, bytes)?;
            thread::sleep(FOR_EVER);
            return Ok(());
        }
        Behaviour::Http => return http(stream, bytes, Duration::ZERO),
        Behaviour::HttpLate => return http(stream, bytes, HTTP_LATE),
        Behaviour::Reset => {
            *bytes += read_some(stream)?;
            return SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
        Behaviour::Close => {
            *bytes += read_some(stream)?;
            stream.shutdown(Shutdown::Write)?;
            return read_all(stream, bytes);
        }
    }
    echo(stream, bytes)
}

fn whoami(stream: &TcpStream) -> io::Result<String> {
    let whoami = Whoami {
        local: stream.local_addr()?,
        peer: stream.peer_addr()?,
    };
    Ok(serde_json::to_string(&whoami)?)
}

fn http(stream: &mut TcpStream, bytes: &mut u64, late: Duration) -> io::Result<()> {
    let body = stream.local_addr()?.ip().to_string();
    let length = body.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        let read = reader.read_line(&mut line)?;
        *bytes += read as u64;
        if read == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            thread::sleep(late);
            reader.get_mut().write_all(answer.as_bytes())?;
        }
    }
}

fn echo(stream: &mut TcpStream, bytes: &mut u64) -> io::Result<()> {
    let mut chunk = [0; CHUNK];
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            n => {
                *bytes += n as u64;
                stream.write_all(&chunk[..n])?;
            }
        }
    }
}

fn read_some(stream: &mut TcpStream) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    Ok(reader.fill_buf()?.len() as u64)
}

fn read_all(stream: &mut TcpStream, bytes: &mut u64) -> io::Result<()> {
    let mut chunk = [0; CHUNK];
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            n => *bytes += n as u64,
        }
    }
}

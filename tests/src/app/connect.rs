// SPDX-License-Identifier: Apache-2.0
//! A client: opens connections, does the same exchange on each, and reports what became of them.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs},
    sync::{
        Arc, Barrier, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use socket2::{Domain, SockRef, Socket, Type};

use super::report::{self, Quantiles, Report, Seen};

const STACK: usize = 128 << 10;
const LONGEST_REPLY: usize = 4096;

/// Open connections and report.
#[derive(Args, Clone, Debug)]
pub struct Connect {
    /// `HOST:PORT`.
    pub target: String,
    /// How many connections in all.
    #[arg(long, default_value_t = 1)]
    pub count: u64,
    /// How many at a time; the first round is open at once before anything is exchanged.
    #[arg(long, default_value_t = 1)]
    pub concurrent: u64,
    /// Go on with more until stdin ends, instead of `count`.
    #[arg(long)]
    pub until_eof: bool,
    /// What to do on each.
    #[arg(long, value_enum, default_value_t = Exchange::Echo)]
    pub exchange: Exchange,
    /// What to send.
    #[arg(long, default_value = "ping")]
    pub send: String,
    /// Send that many bytes instead, `send` repeated.
    #[arg(long)]
    pub bytes: Option<usize>,
    /// Close with RST.
    #[arg(long)]
    pub reset: bool,
    /// Bind to this address first.
    #[arg(long)]
    pub bind: Option<SocketAddr>,
    /// SO_BINDTODEVICE.
    #[arg(long)]
    pub device: Option<String>,
    /// The most that connect() and each read may take, in seconds.
    #[arg(long, default_value_t = 10)]
    pub patience: u64,
}

/// What is done on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Exchange {
    /// Nothing.
    Open,
    /// Send, and read the same back.
    Echo,
    /// Send nothing, read a line.
    Line,
    /// Send nothing, read what the server says first.
    Greeting,
    /// Send, then FIN, then read to the end.
    HalfClose,
    /// Send, then read to the end.
    ToEnd,
}

#[derive(Default)]
struct Tally {
    report: Report,
    connect: Vec<Duration>,
    exchange: Vec<Duration>,
}

struct Failure {
    stage: &'static str,
    error: io::Error,
}

/// Opens all connections and tells what became of them.
pub fn run(connect: &Connect) -> anyhow::Result<Report> {
    let target = resolve(&connect.target)?;
    let payload = Arc::new(payload(connect));
    let tally = Arc::new(Mutex::new(Tally::default()));
    let barrier = Arc::new(Barrier::new(usize::try_from(connect.concurrent)?));
    let stop = stop_at_eof(connect.until_eof);
    let mut workers = Vec::new();
    for index in 0..connect.concurrent {
        let worker = Worker {
            connect: connect.clone(),
            target,
            payload: Arc::clone(&payload),
            tally: Arc::clone(&tally),
            barrier: Arc::clone(&barrier),
            stop: Arc::clone(&stop),
            share: share(connect, index),
        };
        let builder = thread::Builder::new().stack_size(STACK);
        workers.push(builder.spawn(move || worker.run())?);
    }
    for worker in workers {
        anyhow::ensure!(worker.join().is_ok(), "a worker panicked");
    }
    Ok(finish(&tally))
}

fn finish(tally: &Mutex<Tally>) -> Report {
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    let mut report = std::mem::take(&mut tally.report);
    report.connect = Quantiles::from(std::mem::take(&mut tally.connect));
    report.exchange = Quantiles::from(std::mem::take(&mut tally.exchange));
    report
}

fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    let mut addrs = target
        .to_socket_addrs()
        .with_context(|| format!("resolve {target}"))?;
    addrs
        .next()
        .with_context(|| format!("{target} has no address"))
}

fn payload(connect: &Connect) -> Vec<u8> {
    let length = connect.bytes.unwrap_or(connect.send.len());
    connect.send.bytes().cycle().take(length).collect()
}

fn share(connect: &Connect, index: u64) -> u64 {
    connect.count / connect.concurrent + u64::from(index < connect.count % connect.concurrent)
}

fn stop_at_eof(until_eof: bool) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(!until_eof));
    let at_eof = Arc::clone(&stop);
    if until_eof {
        thread::spawn(move || {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            at_eof.store(true, Ordering::Relaxed);
        });
    }
    stop
}

struct Worker {
    connect: Connect,
    target: SocketAddr,
    payload: Arc<Vec<u8>>,
    tally: Arc<Mutex<Tally>>,
    barrier: Arc<Barrier>,
    stop: Arc<AtomicBool>,
    share: u64,
}

// === impl Worker ===

impl Worker {
    fn run(&self) {
        let mut round = 0;
        while round < self.share || !self.stop.load(Ordering::Relaxed) {
            self.one(round == 0);
            round += 1;
        }
    }

    fn one(&self, first: bool) {
        let begin = Instant::now();
        let opened = open(&self.connect, self.target);
        let connect = begin.elapsed();
        if first {
            self.barrier.wait();
        }
        let begin = Instant::now();
        let result = opened
            .map_err(|error| Failure {
                stage: "connect",
                error,
            })
            .and_then(|stream| self.exchange(stream));
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.add(result, connect, begin.elapsed());
    }

    fn exchange(&self, mut stream: TcpStream) -> Result<Seen, Failure> {
        let addresses = stream
            .local_addr()
            .and_then(|local| Ok((local, stream.peer_addr()?)));
        let (local, peer) = addresses.map_err(|error| Failure {
            stage: "addresses",
            error,
        })?;
        let reply = exchange(&mut stream, self.connect.exchange, &self.payload)?;
        if self.connect.reset {
            let reset = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            reset.map_err(|error| Failure {
                stage: "linger",
                error,
            })?;
        }
        let shown = &reply[..reply.len().min(LONGEST_REPLY)];
        Ok(Seen {
            local,
            peer,
            reply: String::from_utf8_lossy(shown).into_owned(),
        })
    }
}

// === impl Tally ===

impl Tally {
    fn add(&mut self, result: Result<Seen, Failure>, connect: Duration, exchange: Duration) {
        self.report.attempted += 1;
        match result {
            Ok(seen) => {
                self.report.succeeded += 1;
                self.report.first.get_or_insert(seen);
                self.connect.push(connect);
                self.exchange.push(exchange);
            }
            Err(Failure { stage, error }) => {
                let name = format!("{stage}: {}", report::name(&error));
                *self.report.failures.entry(name).or_default() += 1;
            }
        }
    }
}

/// A connected socket, bound as asked.
pub fn open(connect: &Connect, target: SocketAddr) -> io::Result<TcpStream> {
    let patience = Duration::from_secs(connect.patience);
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    if let Some(device) = &connect.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(addr) = connect.bind {
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
    }
    socket.connect_timeout(&target.into(), patience)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, kind: Exchange, payload: &[u8]) -> Result<Vec<u8>, Failure> {
    let read = |error| Failure {
        stage: "read",
        error,
    };
    let write = |error| Failure {
        stage: "write",
        error,
    };
    match kind {
        Exchange::Open => Ok(Vec::new()),
        Exchange::Line => line(stream).map_err(read),
        Exchange::Greeting => greeting(stream).map_err(read),
        Exchange::Echo => echo(stream, payload),
        Exchange::HalfClose => {
            stream.write_all(payload).map_err(write)?;
            stream.shutdown(Shutdown::Write).map_err(write)?;
            to_end(stream).map_err(read)
        }
        Exchange::ToEnd => {
            stream.write_all(payload).map_err(write)?;
            to_end(stream).map_err(read)
        }
    }
}

fn line(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && line.len() < LONGEST_REPLY {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(line)
}

fn greeting(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut first = vec![0; LONGEST_REPLY];
    let n = stream.read(&mut first)?;
    first.truncate(n);
    match n {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(first),
    }
}

/// Writes on another thread when there is much to say: else both sides would wait with full buffers.
fn echo(stream: &mut TcpStream, payload: &[u8]) -> Result<Vec<u8>, Failure> {
    let read = |error| Failure {
        stage: "read",
        error,
    };
    let write = |error| Failure {
        stage: "write",
        error,
    };
    let mut back = vec![0; payload.len()];
    let mut writer = stream.try_clone().map_err(write)?;
    thread::scope(|scope| {
        if payload.len() < 1 << 14 {
            writer.write_all(payload).map_err(write)?;
            return stream.read_exact(&mut back).map_err(read);
        }
        let writing = scope.spawn(move || writer.write_all(payload));
        stream.read_exact(&mut back).map_err(read)?;
        writing
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            .map_err(write)
    })?;
    if back != payload {
        let error = io::Error::other("other bytes came back");
        return Err(Failure {
            stage: "compare",
            error,
        });
    }
    Ok(back)
}

fn to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

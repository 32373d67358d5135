// SPDX-License-Identifier: Apache-2.0
//! A client that sends HTTP/1.1 requests at a rate over connections that it keeps, and reports what
//! became of each. None is sent again.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::report::{self, Quantiles};

/// Send requests and report.
#[derive(Args, Clone, Debug)]
pub struct Requests {
    /// `HOST:PORT`.
    pub target: String,
    /// How many requests in all.
    #[arg(long, default_value_t = 1)]
    pub count: u64,
    /// Go on until stdin ends, instead of `count`.
    #[arg(long)]
    pub until_eof: bool,
    /// How many begin in a second, at most.
    #[arg(long, default_value_t = 1_000_000)]
    pub rate: u32,
    /// Over how many connections.
    #[arg(long, default_value_t = 1)]
    pub connections: u64,
    /// The longest that an answer may take, in seconds.
    #[arg(long, default_value_t = 10)]
    pub patience: u64,
}

/// What became of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requested {
    /// How many were sent.
    pub sent: u64,
    /// How many of them were answered with 200, by who said so in the body.
    pub by: BTreeMap<String, u64>,
    /// The others, by status and `l5d-proxy-error`, or by the error of the connection.
    pub failures: BTreeMap<String, u64>,
    /// From the request to the end of its answer.
    pub latency: Quantiles,
}

struct Load {
    requests: Requests,
    begun: Instant,
    next: AtomicU64,
    stop: AtomicBool,
    tally: Mutex<(Requested, Vec<Duration>)>,
}

struct Connection(BufReader<TcpStream>);

struct Answer {
    status: String,
    error: Option<String>,
    body: String,
    closes: bool,
}

/// Sends all and tells what became of them.
pub fn run(requests: &Requests) -> anyhow::Result<Requested> {
    let load = Arc::new(Load {
        requests: requests.clone(),
        begun: Instant::now(),
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        tally: Mutex::default(),
    });
    if requests.until_eof {
        let load = load.clone();
        thread::spawn(move || {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            load.stop.store(true, Ordering::Relaxed);
        });
    }
    let workers: Vec<_> = (0..requests.connections)
        .map(|_| load.clone())
        .map(|load| thread::spawn(move || load.work()))
        .collect();
    for worker in workers {
        ensure!(worker.join().is_ok(), "a worker panicked");
    }
    let mut tally = load.tally.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut requested, latencies) = std::mem::take(&mut *tally);
    requested.latency = Quantiles::from(latencies);
    Ok(requested)
}

// === impl Load ===

impl Load {
    fn work(&self) {
        let mut connection = None;
        while self.wait() {
            let begun = Instant::now();
            let answer = self.exchange(&mut connection);
            if !matches!(&answer, Ok(answer) if !answer.closes) {
                connection = None;
            }
            self.count(answer, begun.elapsed());
        }
    }

    /// Waits until the next request is due. False: there is none.
    fn wait(&self) -> bool {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let due = Duration::from_secs(number).checked_div(self.requests.rate);
        let due = due.unwrap_or_default();
        thread::sleep(due.saturating_sub(self.begun.elapsed()));
        if self.requests.until_eof {
            return !self.stop.load(Ordering::Relaxed);
        }
        number < self.requests.count
    }

    fn exchange(&self, connection: &mut Option<Connection>) -> io::Result<Answer> {
        let kept = match connection {
            Some(kept) => kept,
            None => connection.insert(Connection::open(&self.requests)?),
        };
        kept.exchange(&self.requests.target)
    }

    fn count(&self, answer: io::Result<Answer>, took: Duration) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let (requested, latencies) = &mut *tally;
        requested.sent += 1;
        latencies.push(took);
        let counter = match answer {
            Ok(answer) if answer.status == "200" => requested.by.entry(answer.body),
            Ok(answer) => requested.failures.entry(answer.failure()),
            Err(error) => requested.failures.entry(report::name(&error)),
        };
        *counter.or_default() += 1;
    }
}

// === impl Connection ===

impl Connection {
    fn open(requests: &Requests) -> io::Result<Self> {
        let stream = TcpStream::connect(&requests.target)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(requests.patience)))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn exchange(&mut self, host: &str) -> io::Result<Answer> {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        let status = status.split(' ').nth(1).unwrap_or_default().to_owned();
        let headers = self.headers()?;
        let header = |name: &str| headers.get(name).cloned();
        let length = header("content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or_default()];
        self.0.read_exact(&mut body)?;
        Ok(Answer {
            status,
            error: header("l5d-proxy-error"),
            body: String::from_utf8_lossy(&body).into_owned(),
            closes: header("connection").is_some_and(|value| value == "close"),
        })
    }

    fn headers(&mut self) -> io::Result<BTreeMap<String, String>> {
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                return Ok(headers);
            };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

// === impl Answer ===

impl Answer {
    fn failure(&self) -> String {
        let error = self.error.as_deref().unwrap_or("no l5d-proxy-error");
        format!("{}: {error}", self.status)
    }
}

// === impl Requested ===

impl Requested {
    /// Whether all that was sent was answered with 200, or what was not.
    pub fn all(&self) -> anyhow::Result<&Self> {
        let answered: u64 = self.by.values().sum();
        ensure!(
            self.sent > 0 && answered == self.sent,
            "{answered} of {} requests succeeded; failures: {:?}",
            self.sent,
            self.failures
        );
        Ok(self)
    }

    /// The part of the answers that somebody gave.
    pub fn part(&self, by: &str) -> f64 {
        let answers = |count: u64| u32::try_from(count).map_or(f64::INFINITY, f64::from);
        let all = answers(self.by.values().sum());
        answers(self.by.get(by).copied().unwrap_or_default()) / all
    }
}

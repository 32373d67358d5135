// SPDX-License-Identifier: Apache-2.0
//! The logs of connections and of HTTP requests: a line each on stdout.
//!
//! Connections are logged as JSON when they end, those of all pods or none. Requests ([`http`]) are
//! logged for the pods that ask for it. Linkerd writes the latter to stderr, because its own log is
//! on stdout; here that is on stderr, so that stdout is theirs: no line is of two kinds, and a line
//! with a `direction` is a connection's.
//!
//! A thread of its own writes, because stdout may block; what it can't keep up with is dropped, and
//! the next JSON line, or the process's log, says how much.

mod http;

use std::{
    io::{BufWriter, Write},
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use culvert_api::agent::Direction;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub(crate) use self::http::{Asked, HttpEntry};
use crate::config::AccessLogFormat;

/// How many lines may wait.
const BACKLOG: usize = 4096;

/// How many bytes of them: a client's URI may be long.
const MAX_WAITING: usize = 8 << 20;

/// How often it is said that lines are lost.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The logs of connections and requests.
#[derive(Debug, Default)]
pub struct AccessLog {
    connections: bool,
    /// Started with the first line. None: it could not be.
    writer: OnceLock<Option<Writer>>,
    /// Since the last line.
    dropped: AtomicU64,
    /// Of all.
    lost: AtomicU64,
    said: Mutex<Option<Instant>>,
}

/// The way to the thread that writes.
#[derive(Debug)]
struct Writer {
    lines: SyncSender<String>,
    /// In bytes.
    waiting: Arc<AtomicUsize>,
}

/// A connection, told at its end.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry<'a> {
    /// When it ended.
    pub(crate) timestamp: String,
    pub(crate) direction: Direction,
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    /// The side that dialled.
    pub(crate) src: SocketAddr,
    /// Where the connection went in the end, if it went anywhere.
    pub(crate) dst: Option<SocketAddr>,
    /// What was dialled.
    pub(crate) original_dst: SocketAddr,
    /// The pod that `dst` is, as `namespace/name`.
    pub(crate) endpoint: Option<&'a str>,
    pub(crate) tls: &'a str,
    pub(crate) client_id: &'a str,
    pub(crate) server_id: &'a str,
    /// Application bytes from the side that dialled.
    pub(crate) rx_bytes: u64,
    /// Application bytes to the side that dialled.
    pub(crate) tx_bytes: u64,
    pub(crate) duration_ms: u64,
    pub(crate) error: Option<String>,
    /// Lines lost before this one.
    pub(crate) dropped: u64,
}

// === impl AccessLog ===

impl AccessLog {
    /// As configured.
    pub fn new(format: AccessLogFormat) -> Self {
        let connections = match format {
            AccessLogFormat::Off => false,
            AccessLogFormat::Json => true,
        };
        Self {
            connections,
            ..Self::default()
        }
    }

    /// Whether connections are logged.
    pub(crate) fn is_on(&self) -> bool {
        self.connections
    }

    /// Logs one connection.
    pub(crate) fn log(&self, mut entry: Entry<'_>) {
        if self.connections {
            self.send(|dropped| {
                entry.dropped = dropped;
                serde_json::to_string(&entry).ok()
            });
        }
    }

    /// Has a line written. It is told how many were lost before it.
    fn send(&self, line: impl FnOnce(u64) -> Option<String>) {
        let Some(writer) = self.writer.get_or_init(Writer::start) else {
            return;
        };
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if !line(dropped).is_some_and(|line| writer.send(line)) {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
            self.lost();
        }
    }

    /// Says so now and then: a line of Apache's format has no place for it.
    fn lost(&self) {
        let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            *said = Some(Instant::now());
            tracing::warn!(lost, "Lines of the access log are lost: stdout is too slow");
        }
    }
}

// === impl Writer ===

impl Writer {
    fn start() -> Option<Self> {
        let (lines, received) = sync_channel(BACKLOG);
        let waiting = Arc::new(AtomicUsize::new(0));
        let written = waiting.clone();
        let thread = std::thread::Builder::new().name("access-log".into());
        if let Err(error) = thread.spawn(move || write(&received, &written)) {
            tracing::error!(%error, "Could not start the access log, nothing is logged");
            return None;
        }
        Some(Self { lines, waiting })
    }

    fn send(&self, line: String) -> bool {
        let bytes = line.len();
        let room = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_WAITING;
        let sent = room && self.lines.try_send(line).is_ok();
        if !sent {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        sent
    }
}

/// The present, as log lines have it.
pub(crate) fn now() -> String {
    OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default()
}

/// Milliseconds, as log lines have them.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn write(lines: &Receiver<String>, waiting: &AtomicUsize) {
    let mut stdout = BufWriter::new(std::io::stdout());
    while let Ok(first) = lines.recv() {
        for line in std::iter::once(first).chain(lines.try_iter()) {
            waiting.fetch_sub(line.len(), Ordering::Relaxed);
            if writeln!(stdout, "{line}").is_err() {
                return;
            }
        }
        if stdout.flush().is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object() -> serde_json::Result<()> {
        let entry = Entry {
            timestamp: now(),
            direction: Direction::Outbound,
            namespace: "shop",
            pod: "web-1",
            src: SocketAddr::from(([10, 0, 0, 1], 1234)),
            dst: None,
            original_dst: SocketAddr::from(([10, 96, 0, 1], 80)),
            endpoint: None,
            tls: "true",
            client_id: "",
            server_id: "spiffe://cluster.local/ns/shop/sa/cart",
            rx_bytes: 1,
            tx_bytes: 2,
            duration_ms: 3,
            error: Some("i/o: \"refused\"\n".into()),
            dropped: 0,
        };
        let line = serde_json::to_string(&entry)?;
        assert!(!line.contains('\n'));
        let read: serde_json::Value = serde_json::from_str(&line)?;
        assert_eq!(read["direction"], "outbound");
        assert_eq!(read["original_dst"], "10.96.0.1:80");
        assert_eq!(read["error"], "i/o: \"refused\"\n");
        assert!(OffsetDateTime::parse(&entry.timestamp, &Rfc3339).is_ok());
        Ok(())
    }

    fn stuck(max_lines: usize) -> (AccessLog, Receiver<String>) {
        let (lines, received) = sync_channel(max_lines);
        let waiting = Arc::default();
        let log = AccessLog::default();
        let writer = OnceLock::from(Some(Writer { lines, waiting }));
        (AccessLog { writer, ..log }, received)
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_told() {
        let (log, received) = stuck(2);
        let send = || log.send(|dropped| Some(dropped.to_string()));
        (0..5).for_each(|_| send());
        assert!(received.try_iter().eq(["0", "0"]));
        send();
        send();
        assert!(received.try_iter().eq(["3", "0"]));
    }

    #[test]
    fn long_lines_do_not_pile_up() {
        let (log, received) = stuck(1_000);
        let send = || log.send(|_| Some("x".repeat(1 << 20)));
        (0..20).for_each(|_| send());
        assert_eq!(received.try_iter().count(), MAX_WAITING >> 20);
    }
}

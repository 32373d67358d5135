// SPDX-License-Identifier: Apache-2.0
//! The log of connections: one JSON object per line on stdout, when a connection ends.
//!
//! A thread of its own writes, because stdout may block; what it can't keep up with is dropped,
//! and the next line says how much.

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use culvert_api::agent::Direction;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::config::AccessLogFormat;

/// How many lines may wait.
const BACKLOG: usize = 4096;

/// The log of connections.
#[derive(Debug, Default)]
pub struct AccessLog {
    lines: Option<SyncSender<String>>,
    dropped: AtomicU64,
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
        match format {
            AccessLogFormat::Off => Self::default(),
            AccessLogFormat::Json => Self::json(),
        }
    }

    fn json() -> Self {
        let (lines, waiting) = sync_channel(BACKLOG);
        let thread = std::thread::Builder::new().name("access-log".into());
        if let Err(error) = thread.spawn(move || write(&waiting)) {
            tracing::error!(%error, "Could not start the access log, connections are not logged");
            return Self::default();
        }
        Self {
            lines: Some(lines),
            dropped: AtomicU64::new(0),
        }
    }

    /// Whether anything is logged at all.
    pub(crate) fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Logs one connection.
    pub(crate) fn log(&self, mut entry: Entry<'_>) {
        let Some(lines) = &self.lines else { return };
        entry.dropped = self.dropped.swap(0, Ordering::Relaxed);
        let Ok(line) = serde_json::to_string(&entry) else {
            return;
        };
        if lines.try_send(line).is_err() {
            self.dropped.fetch_add(entry.dropped + 1, Ordering::Relaxed);
        }
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

fn write(lines: &Receiver<String>) {
    for line in lines {
        let mut stdout = std::io::stdout().lock();
        if writeln!(stdout, "{line}")
            .and_then(|()| stdout.flush())
            .is_err()
        {
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
}

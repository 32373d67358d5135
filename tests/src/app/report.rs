// SPDX-License-Identifier: Apache-2.0
//! What the programs print: one JSON object on a line.

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What became of a number of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many were tried.
    pub attempted: u64,
    /// How many did all that was asked for.
    pub succeeded: u64,
    /// The others, by stage and errno: `connect: ECONNREFUSED`.
    pub failures: BTreeMap<String, u64>,
    /// How long connect() took.
    pub connect: Quantiles,
    /// How long the exchange after it took.
    pub exchange: Quantiles,
    /// The first success.
    pub first: Option<Seen>,
}

/// What one connection saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// getsockname().
    pub local: SocketAddr,
    /// getpeername().
    pub peer: SocketAddr,
    /// What came back, cut at 4 KiB.
    pub reply: String,
}

/// What `whoami` says first: the addresses as the server sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whoami {
    /// getsockname() of the accepted socket.
    pub local: SocketAddr,
    /// getpeername() of the accepted socket.
    pub peer: SocketAddr,
}

/// How a server's connection ended, one line of its log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The server's port.
    pub port: u16,
    /// The client.
    pub peer: SocketAddr,
    /// `fin`, or the errno of the read.
    pub end: String,
    /// What was read.
    pub bytes: u64,
}

/// Times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub p50_us: u64,
    /// 99 of 100 were as fast or faster.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
}

// === impl Quantiles ===

impl From<Vec<Duration>> for Quantiles {
    fn from(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |per_cent: usize| {
            let index = (times.len() * per_cent / 100).min(times.len().saturating_sub(1));
            let time = times.get(index).copied().unwrap_or_default();
            u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
        };
        Self {
            p50_us: at(50),
            p99_us: at(99),
            max_us: at(100),
        }
    }
}

// === impl Report ===

impl Report {
    /// Whether all that was tried succeeded, or what did not.
    pub fn all(&self) -> anyhow::Result<&Self> {
        anyhow::ensure!(
            self.attempted > 0 && self.succeeded == self.attempted,
            "{} of {} succeeded; failures: {:?}",
            self.succeeded,
            self.attempted,
            self.failures
        );
        Ok(self)
    }

    /// Whether nothing succeeded and every failure has this name.
    pub fn none(&self, failure: &str) -> anyhow::Result<&Self> {
        let as_said = self.failures.get(failure) == Some(&self.attempted);
        anyhow::ensure!(
            self.attempted > 0 && as_said,
            "expected {} times {failure:?}; {} succeeded, failures: {:?}",
            self.attempted,
            self.succeeded,
            self.failures
        );
        Ok(self)
    }

    /// Whether nothing succeeded, however it failed.
    pub fn refused(&self) -> anyhow::Result<&Self> {
        anyhow::ensure!(
            self.attempted > 0 && self.succeeded == 0,
            "{} of {} succeeded, expected none",
            self.succeeded,
            self.attempted
        );
        Ok(self)
    }

    /// The first success.
    pub fn seen(&self) -> anyhow::Result<&Seen> {
        self.all()?;
        self.first
            .as_ref()
            .ok_or_else(|| anyhow::anyhow!("nothing was seen"))
    }

    /// What `whoami` said to the first success.
    pub fn whoami(&self) -> anyhow::Result<Whoami> {
        Ok(serde_json::from_str(&self.seen()?.reply)?)
    }
}

/// The name of an error as the kernel's headers spell it; `timeout` for a read that took too long.
pub fn name(error: &io::Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, _) => "timeout".to_owned(),
        (io::ErrorKind::UnexpectedEof, _) => "eof".to_owned(),
        (_, Some(errno)) => format!("{:?}", Errno::from_raw(errno)),
        (_, None) => error.to_string(),
    }
}

/// Prints a line, at once.
pub fn say<T: Serialize>(what: &T) -> anyhow::Result<()> {
    use io::Write;
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_none() {
        assert_eq!(Quantiles::from(vec![]), Quantiles::default());
        let got = Quantiles::from((1..=200).map(Duration::from_micros).collect::<Vec<_>>());
        assert_eq!((got.p50_us, got.p99_us, got.max_us), (101, 199, 200));
    }

    #[test]
    fn errors_are_named_as_in_the_headers() {
        assert_eq!(name(&io::Error::from_raw_os_error(111)), "ECONNREFUSED");
        assert_eq!(name(&io::Error::from_raw_os_error(11)), "timeout");
    }
}

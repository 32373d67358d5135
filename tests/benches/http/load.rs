// SPDX-License-Identifier: Apache-2.0
//! Programs that make load, and what they say.

use std::{fmt, fs, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::sandbox::Sandbox;
use serde::Serialize;

/// Where nginx serves HTTP/1.1.
pub const HTTP1: u16 = 8080;
/// Where nginx serves HTTP/2 without TLS.
pub const HTTP2: u16 = 8081;
/// How long the body of a response is, in bytes.
pub const BODY: usize = 128;

/// All loads, in the order of the table.
pub const LOADS: [Load; 6] = [
    Load::h2load("HTTP/1.1, 1 connection", HTTP1, &["--h1", "-c1"]),
    Load::h2load("HTTP/1.1, 64 connections", HTTP1, &["--h1", "-c64"]),
    Load::h2load("HTTP/2, 1 connection", HTTP2, &["-c1", "-m1"]),
    Load::h2load("HTTP/2, 64 connections", HTTP2, &["-c64", "-m1"]),
    Load::h2load(
        "HTTP/2, 1 connection of 64 streams",
        HTTP2,
        &["-c1", "-m64"],
    ),
    Load {
        name: "new HTTP/1.1 connections, 16 at once",
        program: Program::Wrk,
        port: HTTP1,
        flags: &["-t1", "-c16", "-HConnection: close", "--latency"],
    },
];

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// What it is called in the table.
    pub name: &'static str,
    program: Program,
    port: u16,
    flags: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
enum Program {
    H2load,
    Wrk,
}

/// What one run measured.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Run {
    /// Requests that were answered.
    pub requests: u64,
    /// Per second.
    pub rate: f64,
    /// Half of all took no longer, in microseconds.
    pub p50_us: f64,
    /// 99 in 100 took no longer.
    pub p99_us: f64,
    /// What the proxies of both nodes used, in seconds for 100,000 requests.
    pub cpu_per_100k: f64,
}

// === impl Load ===

impl Load {
    const fn h2load(name: &'static str, port: u16, flags: &'static [&'static str]) -> Self {
        let program = Program::H2load;
        Self {
            name,
            program,
            port,
            flags,
        }
    }

    /// Makes the load from a pod for so many seconds. Every request must be answered with 200.
    pub fn run(
        &self,
        sandbox: &Sandbox,
        pod: &str,
        to: IpAddr,
        seconds: u64,
        files: &Path,
    ) -> anyhow::Result<Run> {
        let url = format!("http://{to}:{}/", self.port);
        let log = files.join("requests.log");
        let own = match self.program {
            Program::H2load => {
                let _ = fs::remove_file(&log);
                let log = format!("--log-file={}", log.display());
                vec!["h2load".into(), "-t1".into(), format!("-D{seconds}"), log]
            }
            Program::Wrk => vec!["wrk".into(), format!("-d{seconds}s")],
        };
        let flags = self.flags.iter().copied().chain([url.as_str()]);
        let command: Vec<_> = own.iter().map(String::as_str).chain(flags).collect();
        let patience = Duration::from_secs(seconds + 30);
        let said = sandbox.exec_for(patience, pod, &command)?.ok()?.stdout;
        let run = match self.program {
            Program::H2load => h2load(&said, &fs::read_to_string(&log)?),
            Program::Wrk => wrk(&said),
        };
        run.with_context(|| format!("{} said\n{said}", own[0]))
    }
}

/// `finished in 2.00s, 49623.00 req/s, …`, `requests: … 99246 succeeded, 0 failed, 0 errored, …`, and
/// in its log a line for each request: when it began, its status, and how long it took in µs.
fn h2load(said: &str, log: &str) -> anyhow::Result<Run> {
    let rate = between(said, "s, ", " req/s")?.parse()?;
    for (count, what) in [(0_u64, "failed"), (0, "errored"), (0, "timeout")] {
        let got: u64 = before(said, what)?.parse()?;
        ensure!(got == count, "{got} requests {what}");
    }
    let requests = before(said, "2xx")?.parse()?;
    let took = log.lines().filter_map(|line| line.split('\t').nth(2));
    let mut took: Vec<u64> = took.map(str::parse).collect::<Result<_, _>>()?;
    took.sort_unstable();
    let quantile = |part: usize| took.get(took.len() * part / 100).copied();
    Ok(Run {
        requests,
        rate,
        p50_us: quantile(50).context("its log is empty")? as f64,
        p99_us: quantile(99).context("its log is empty")? as f64,
        cpu_per_100k: 0.0,
    })
}

/// `    50%  316.00us`, `  316540 requests in 2.10s, …`, `Requests/sec: 150832.74`, and a line about
/// `Socket errors` or `Non-2xx` only if there were any.
fn wrk(said: &str) -> anyhow::Result<Run> {
    for bad in ["Socket errors", "Non-2xx"] {
        ensure!(
            !said.contains(bad),
            "not every request was answered with 200"
        );
    }
    let rate = between(said, "Requests/sec:", "\n")?;
    let (_, distribution) = said
        .split_once("Latency Distribution")
        .context("it has no distribution")?;
    let quantile = |percent: &str| between(distribution, percent, "\n").and_then(micros);
    Ok(Run {
        requests: before(said, "requests in")?.parse()?,
        rate: rate.parse()?,
        p50_us: quantile("50%")?,
        p99_us: quantile("99%")?,
        cpu_per_100k: 0.0,
    })
}

fn micros(text: &str) -> anyhow::Result<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    let found = units
        .iter()
        .find_map(|(unit, micros)| Some((text.strip_suffix(unit)?, micros)));
    let (number, micros) = found.with_context(|| format!("{text:?} is no time"))?;
    Ok(number.parse::<f64>()? * micros)
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> anyhow::Result<&'a str> {
    let upto = text
        .split_once(begin)
        .and_then(|(_, rest)| rest.split_once(end));
    Ok(upto
        .with_context(|| format!("it has no {begin:?}"))?
        .0
        .trim())
}

/// The word before some text.
fn before<'a>(text: &'a str, what: &str) -> anyhow::Result<&'a str> {
    let head = text.split_once(&format!(" {what}")).map(|(head, _)| head);
    let word = head.and_then(|head| head.split_whitespace().last());
    word.with_context(|| format!("it says nothing of {what:?}"))
}

// === impl Run ===

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rate,
            p50_us,
            p99_us,
            ..
        } = self;
        write!(f, "{rate:.0}/s, p50 {p50_us:.0} µs, p99 {p99_us:.0} µs")
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What the proxies of both nodes use.

use std::{fs, time::Duration};

use anyhow::Context as _;
use culvert_tests::sandbox::{Daemon, Sandbox};
use nix::unistd::{SysconfVar, sysconf};

/// The nodes.
pub const NODES: [&str; 2] = ["n1", "n2"];

/// The two proxies.
#[derive(Debug)]
pub struct Proxies([u64; 2]);

// === impl Proxies ===

impl Proxies {
    /// Those that run.
    pub fn of(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let pid = |node| sandbox.pid(Daemon::Proxy(node));
        Ok(Self([pid(NODES[0])?, pid(NODES[1])?]))
    }

    /// The CPU time of both so far, in user space and in the kernel.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let ticks = self.0.iter().map(|pid| ticks(*pid));
        let ticks: u64 = ticks.sum::<anyhow::Result<u64>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no ticks")?;
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }

    /// The memory of each, in MiB.
    pub fn resident(&self) -> anyhow::Result<[f64; 2]> {
        Ok([resident(self.0[0])?, resident(self.0[1])?])
    }
}

/// utime and stime: <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>.
fn ticks(pid: u64) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let mut times = fields.split(' ').skip(11).take(2);
    times.try_fold(0, |sum, field| Ok(sum + field.parse::<u64>()?))
}

fn resident(pid: u64) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<f64>()? / 1024.0)
}

// SPDX-License-Identifier: Apache-2.0
//! A proxy that was taken over: it tries what a proxy must not be able to do, with the user, filter
//! and descriptors of a real one, and prints what each attempt came to.

mod agent;
mod sockets;
mod syscalls;

use std::{collections::BTreeMap, io, path::PathBuf, thread};

use clap::Args;
use nix::{libc, sys::prctl};
use serde::{Deserialize, Serialize};

use super::report;

/// Try what a proxy must not be able to do.
#[derive(Args, Clone, Debug)]
pub struct Turned {
    /// The proxy's seccomp filters, as the test read them from the real one; none for a comparison.
    #[arg(long)]
    pub filters: Option<PathBuf>,
    /// The agent's socket for proxies.
    #[arg(long)]
    pub socket: PathBuf,
    /// The process of the agent.
    #[arg(long)]
    pub agent: i32,
    /// The process of the real proxy.
    #[arg(long)]
    pub proxy: i32,
    /// Files and directories of others to read.
    #[arg(long)]
    pub read: Vec<PathBuf>,
    /// The pod whose sockets are misused.
    #[arg(long)]
    pub pod: String,
    /// An address in another pod, with a server.
    #[arg(long)]
    pub elsewhere: std::net::SocketAddr,
    /// A server on the pod's loopback.
    #[arg(long)]
    pub local: std::net::SocketAddr,
    /// The pod's own server.
    #[arg(long)]
    pub served: std::net::SocketAddr,
    /// A server on the same link as the pod.
    #[arg(long)]
    pub neighbour: std::net::SocketAddr,
    /// The same one.
    #[arg(long)]
    pub neighbour6: std::net::SocketAddr,
}

/// An instruction of classic BPF: code, jt, jf, k.
pub type Instruction = (u16, u8, u8, u32);

/// What each attempt came to: `ok`, or the errno's name.
pub type Attempts = BTreeMap<String, String>;

/// What the process is, as `/proc/self/status` says, and what it could do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The lines of `/proc/self/status` about rights.
    pub rights: BTreeMap<String, String>,
    /// The attempts.
    pub attempts: Attempts,
}

/// What a status file says about rights.
pub fn rights(status: &str) -> BTreeMap<String, String> {
    const FIELDS: [&str; 10] = [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
    ];
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    let lines = lines.filter(|(name, _)| FIELDS.contains(name) || *name == "Seccomp_filters");
    lines
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Tries everything.
pub fn run(turned: &Turned) -> anyhow::Result<()> {
    if turned.filters.is_none() {
        become_powerful()?;
    }
    prctl::set_no_new_privs()?;
    if let Some(filters) = &turned.filters {
        prctl::set_dumpable(false)?;
        let filters: Vec<Vec<Instruction>> = serde_json::from_slice(&std::fs::read(filters)?)?;
        for filter in &filters {
            install(filter)?;
        }
    }
    let mut outcome = Outcome {
        rights: rights(&std::fs::read_to_string("/proc/thread-self/status")?),
        ..Outcome::default()
    };
    outcome.attempts.extend(syscalls::attempts(turned));
    let (attempts, spare) = sockets::attempts(turned)?;
    outcome.attempts.extend(attempts);
    report::say(&outcome)?;
    agent::offend(turned, spare)
}

/// The proxy's user, with all of root's capabilities: `SECBIT_NO_SETUID_FIXUP` (capabilities(7)).
fn become_powerful() -> io::Result<()> {
    const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    // SAFETY: this option takes one number and touches no memory.
    let set = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP) };
    nix::errno::Errno::result(set)?;
    let (user, group) = (
        nix::unistd::Uid::from_raw(2102),
        nix::unistd::Gid::from_raw(2102),
    );
    nix::unistd::setresgid(group, group, group)?;
    Ok(nix::unistd::setresuid(user, user, user)?)
}

fn install(filter: &[Instruction]) -> io::Result<()> {
    let mut code: Vec<_> = filter
        .iter()
        .map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).map_err(io::Error::other)?,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: the kernel reads `len` instructions from the vector, which outlives the call.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    nix::errno::Errno::result(set)?;
    Ok(())
}

/// Runs each attempt on a thread of its own: one that succeeds may change the thread.
fn tried(name: &str, attempt: impl FnOnce() -> io::Result<()> + Send) -> (String, String) {
    let result = thread::scope(|scope| scope.spawn(attempt).join());
    let result = match result {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(error)) => report::name(&error),
        Err(_) => "panic".to_owned(),
    };
    (name.to_owned(), result)
}

/// Makes a system call that gives no descriptor that would have to be closed.
fn call(number: libc::c_long, arguments: [libc::c_long; 5]) -> io::Result<libc::c_long> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: every caller gives numbers, or pointers to memory that outlives the call.
    let returned = unsafe { libc::syscall(number, a, b, c, d, e) };
    Ok(nix::errno::Errno::result(returned)?)
}

// SPDX-License-Identifier: Apache-2.0
//! Who plays the proxy.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use anyhow::{Context as _, ensure};
use culvert_tests::{app::turned::Instruction, process::Running, sandbox::Sandbox};
use nix::{errno::Errno, libc, sys::wait::waitpid, unistd::Pid};
use tempfile::TempDir;

use crate::{AGENT, PROXY};

/// What the kernel holds of a process's seccomp filters, the first installed first.
fn filters(pid: u64) -> anyhow::Result<Vec<Vec<Instruction>>> {
    let pid = Pid::from_raw(pid.try_into()?);
    ptrace(libc::PTRACE_SEIZE, pid, 0, std::ptr::null_mut()).context("trace the proxy")?;
    ptrace(libc::PTRACE_INTERRUPT, pid, 0, std::ptr::null_mut())?;
    waitpid(pid, None)?;
    let mut filters = Vec::new();
    let ended = loop {
        match filter(pid, filters.len()) {
            Ok(filter) => filters.push(filter),
            Err(Errno::ENOENT) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    ptrace(libc::PTRACE_DETACH, pid, 0, std::ptr::null_mut())?;
    ended.context("read the proxy's seccomp filters")?;
    filters.reverse();
    Ok(filters)
}

/// `PTRACE_SECCOMP_GET_FILTER` (ptrace(2)): 0 is the one that was installed last.
fn filter(pid: Pid, index: usize) -> nix::Result<Vec<Instruction>> {
    const GET_FILTER: libc::c_uint = 0x420c;
    let none = libc::sock_filter {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let mut code = vec![none; 4096];
    let length = ptrace(GET_FILTER, pid, index, code.as_mut_ptr().cast())?;
    code.truncate(usize::try_from(length).unwrap_or(0));
    let instruction = |one: &libc::sock_filter| (one.code, one.jt, one.jf, one.k);
    Ok(code.iter().map(instruction).collect())
}

fn ptrace(
    request: libc::c_uint,
    pid: Pid,
    address: usize,
    data: *mut libc::c_void,
) -> nix::Result<libc::c_long> {
    // SAFETY: `data` is null, or has room for BPF_MAXINSNS, 4096, instructions: all that a filter has.
    Errno::result(unsafe { libc::ptrace(request, pid.as_raw(), address, data) })
}

/// What the process is like that plays the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// Exactly like the proxy.
    Proxy,
    /// Its user, with every capability and without filters.
    Powerful,
}

pub struct Stage {
    /// The filters, readable for everybody.
    dir: TempDir,
}

impl Stage {
    pub fn new(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("culvert-turned-")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let filters = filters(sandbox.pid(PROXY)?)?;
        ensure!(
            filters.len() == 2,
            "the proxy has {} filters",
            filters.len()
        );
        fs::write(dir.path().join("filters"), serde_json::to_vec(&filters)?)?;
        Ok(Self { dir })
    }

    pub fn start(&self, sandbox: &Sandbox, who: As) -> anyhow::Result<Running> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", sandbox.node("n1").path().display()));
        if who == As::Proxy {
            command.args(["setpriv", "--reuid=2102", "--regid=2102", "--clear-groups"]);
            command.args(["--bounding-set=-all", "--no-new-privs"]);
        }
        command.arg(sandbox.testapp()).arg("turned");
        if who == As::Proxy {
            command
                .arg("--filters")
                .arg(self.dir.path().join("filters"));
        }
        command
            .arg("--socket")
            .arg(sandbox.node_root("n1").join("run/proxy.sock"));
        command.args(["--agent", &sandbox.pid(AGENT)?.to_string()]);
        command.args(["--proxy", &sandbox.pid(PROXY)?.to_string()]);
        for path in secrets(sandbox) {
            ensure!(path.exists(), "there is no {}", path.display());
            command.arg("--read").arg(path);
        }
        command.args(["--pod", "victim", "--local", "127.0.0.1:7001"]);
        command.args(["--elsewhere", &sandbox.at("plain", 7000)?]);
        command.args(["--served", &sandbox.at("victim", 7000)?]);
        command.args(["--neighbour", &sandbox.at("near", 7000)?]);
        command.args(["--neighbour6", &sandbox.at6("near", 7000)?]);
        Running::start(&mut command)
    }
}

pub fn secrets(sandbox: &Sandbox) -> Vec<std::path::PathBuf> {
    vec![
        sandbox.root().join("control/issuer.key"),
        sandbox.root().join("control"),
        sandbox.node_root("n1").join("state"),
        "/etc/shadow".into(),
    ]
}

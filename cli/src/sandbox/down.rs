// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox down`.

use std::{
    fs::{self, File, TryLockError},
    io,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    api::{self, Request},
    cgroup::Cgroups,
    error::{Doing, Error, Result},
    layout::{Layout, Name},
    leftovers,
};
use crate::output::{self, Progress};

const POLL: Duration = Duration::from_millis(200);

/// How long a supervisor that said that it is done may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// How long a killed one may.
const DEATH: Duration = Duration::from_secs(10);

/// Runs the command.
pub fn run(name: Name) -> Result<()> {
    let layout = Layout::new(name);
    let existed = remove(&layout)?;
    let what = if existed {
        "is removed"
    } else {
        "was not there"
    };
    output::print(&format!("The sandbox {:?} {what}.\n", layout.name.as_str()))
        .doing(|| "print".into())
}

/// Removes a sandbox, with the help of its supervisor if there is one. Says whether there was any.
pub fn remove(layout: &Layout) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        let missing = vec!["network namespaces and cgroups need root: use sudo".to_owned()];
        return Err(Error::Machine { missing });
    }
    let (done_tx, done) = mpsc::channel();
    let of = layout.clone();
    thread::spawn(move || done_tx.send(remove_all(&of)));
    let mut progress = Progress::start();
    loop {
        match done.recv_timeout(POLL) {
            Ok(removed) => {
                progress.end();
                return removed;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => progress.say("ending pods and processes"),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Error::Supervisor(
                    "the removal ended without a result".into(),
                ));
            }
        }
    }
}

fn remove_all(layout: &Layout) -> Result<bool> {
    // Whatever the supervisor can't do is done without it.
    let asked = api::ask(layout, &Request::Down);
    let patience = if asked.is_ok() { GRACE } else { Duration::ZERO };
    // Held to the end: nobody starts what is being removed.
    let _lock = end_supervisor(layout, patience).doing(|| "end the sandbox's supervisor".into())?;
    let cgroups = Cgroups::find(&layout.name).doing(|| "read /proc/mounts".into())?;
    let existed = leftovers::remove(layout, cgroups.as_ref())?;
    Ok(existed || asked.is_ok())
}

/// Ends a supervisor that still holds its lock: one that does not answer, such as one that is just
/// setting the sandbox up.
fn end_supervisor(layout: &Layout, patience: Duration) -> io::Result<Option<File>> {
    let lock = match File::options().write(true).open(layout.lock()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    let started = Instant::now();
    while let Err(error) = lock.try_lock() {
        match error {
            TryLockError::Error(error) => return Err(error),
            TryLockError::WouldBlock if started.elapsed() > patience + DEATH => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not die"));
            }
            TryLockError::WouldBlock if started.elapsed() >= patience => kill_supervisor(layout),
            TryLockError::WouldBlock => {}
        }
        thread::sleep(POLL / 10);
    }
    Ok(Some(lock))
}

fn kill_supervisor(layout: &Layout) {
    let pid = fs::read_to_string(layout.pid()).ok();
    let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok()) else {
        return;
    };
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // The number may be another process's by now.
    let words: Vec<_> = command.split(|byte| *byte == 0).collect();
    let named = words
        .windows(2)
        .any(|pair| pair[0] == b"--name" && pair[1] == layout.name.as_str().as_bytes());
    if named && words.contains(&&b"supervise"[..]) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

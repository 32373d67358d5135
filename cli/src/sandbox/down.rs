// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox down`.

use std::{sync::mpsc, thread, time::Duration};

use super::{
    api::{self, Request},
    cgroup::Cgroups,
    error::{Doing, Error, Result},
    layout::{Layout, Name},
    leftovers,
};
use crate::output::{self, Progress};

const POLL: Duration = Duration::from_millis(200);

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
    let cgroups = Cgroups::find(&layout.name).doing(|| "read /proc/mounts".into())?;
    let existed = leftovers::remove(layout, cgroups.as_ref())?;
    Ok(existed || asked.is_ok())
}

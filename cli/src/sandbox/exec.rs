// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox exec`: this process enters the pod and becomes the command.

use std::{
    fs, io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::Command,
};

use nix::sched::{CloneFlags, setns};

use super::{
    api::{self, Answer, Entrance, Request},
    error::{Doing, Error, Result},
    layout::Layout,
    pods::PATH,
    process::{find_program, pidfd},
};
use crate::args::Exec;

/// Runs the command. Returns only when it can't.
pub fn run(args: Exec) -> Result<()> {
    let layout = Layout::new(args.target.name);
    let request = Request::Enter {
        pod: args.pod.clone(),
        container: args.container,
    };
    let Answer::Enter { entrance } = api::ask(&layout, &request)? else {
        return Err(Error::Supervisor(
            "the supervisor gave no way into the pod".into(),
        ));
    };
    enter(&entrance).doing(|| format!("enter the pod {}", args.pod))?;
    let mut words = args.command.into_iter();
    let program = words.next().unwrap_or_default();
    let name = program.to_string_lossy();
    let path = entrance.env.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(PATH, |(_, path)| path.as_str());
    let program = find_program(&name, path).map_err(|error| Error::Usage(error.to_string()))?;
    let mut command = Command::new(&program);
    command.args(words).env_clear().envs(entrance.env);
    if let Some(term) = std::env::var_os("TERM") {
        command.env("TERM", term);
    }
    Err(command.exec()).doing(|| format!("run {}", program.display()))
}

/// The cgroup first: what the pod's mounts show of it may differ. No thread may be there when the
/// mount namespace is entered.
fn enter(entrance: &Entrance) -> io::Result<()> {
    let pidfd = pidfd(entrance.pid)?;
    fs::write(Path::new(&entrance.cgroup).join("cgroup.procs"), "0")?;
    let namespaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    Ok(setns(pidfd.as_fd(), namespaces)?)
}

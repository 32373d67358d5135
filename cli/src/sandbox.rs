// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox`: a small mesh on one machine, without Kubernetes.
//!
//! A supervisor process keeps each sandbox ([`supervisor`], [`kubelet`]); every other command talks
//! to it over a Unix socket ([`api`]) and works in its namespaces, or removes what a dead one left.

use crate::args::SandboxCommand;

mod api;
mod backoff;
mod binaries;
mod capture;
mod cgroup;
mod cni;
mod daemon;
mod demo;
mod deployments;
mod down;
pub mod error;
mod exec;
mod expansion;
mod fabric;
pub mod families;
mod golden;
mod http;
mod kill;
mod kubelet;
pub mod layout;
mod leftovers;
mod links;
mod logs;
mod names;
mod netns;
mod node;
mod options;
mod pods;
mod probes;
mod process;
mod published;
mod reboot;
mod scheduler;
mod scrape;
mod services;
pub mod stat;
mod status;
mod supervisor;
mod supported;
mod tokens;
mod up;
mod view;
mod wanted;
mod watch;

pub use self::error::{Error, Result};

/// Runs a sandbox command.
pub fn run(command: SandboxCommand) -> Result<()> {
    match command {
        SandboxCommand::Up(args) => up::run(args),
        SandboxCommand::Down(target) => down::run(target.name),
        SandboxCommand::Status(args) => status::run(args),
        SandboxCommand::Stat(args) => stat::run(args),
        SandboxCommand::Exec(args) => exec::run(args),
        SandboxCommand::Logs(args) => logs::run(args),
        SandboxCommand::Demo(args) => demo::run(args),
        SandboxCommand::Kill(args) => kill::kill(&args),
        SandboxCommand::Start(args) => kill::start(&args),
        SandboxCommand::Reboot(args) => reboot::run(&args),
        SandboxCommand::Supervise(target) => up::supervise(target.name),
        SandboxCommand::DemoApp { app } => demo::app::run(app),
    }
}

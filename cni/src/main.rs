// SPDX-License-Identifier: Apache-2.0
//! `culvert-cni`, a chained CNI plugin (<https://www.cni.dev/docs/spec/>, 0.3.0 to 1.1.0):
//! it hands ADD, DEL, CHECK, GC and STATUS to the node's agent and prints what the runtime wants.
//!
//! It never talks to Kubernetes and never loads anything: one connection to the agent's Unix
//! socket, one line each way. stdout gets at most one JSON object, the log goes to stderr.
//!
//! Of the crate `cni-plugin` it uses the command names, the types of the network configuration and
//! of the replies. It does not use its `Cni::load` and `reply`, because
//! - STATUS and GC are unknown to it, and 1.1.0 only by semver;
//! - it turns `prevResult` into a value and back, where a runtime may rely on every byte;
//! - it refuses container ids with capital letters, which the specification allows;
//! - it exits with the error's code, so that 256 would be a success.

mod agent;
mod away;
mod config;
mod error;
mod input;
mod note;
mod plugin;
mod reply;

use std::{io, panic, process::ExitCode};

use crate::{error::Error, input::Environment, reply::Outcome};

fn main() -> ExitCode {
    let outcome = panic::catch_unwind(|| plugin::run(&Environment::of_process(), io::stdin()));
    let outcome = outcome.unwrap_or_else(|_| Outcome::of_unknown_version(Error::Bug));
    reply::finish(&outcome, io::stdout())
}

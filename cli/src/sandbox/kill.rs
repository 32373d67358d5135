// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox kill` and `start`, for tests of what happens when parts are down.

use std::str::FromStr;

use nix::sys::signal::Signal;

use super::{
    api::{self, ProcessName, Request},
    error::{Error, Result},
    layout::Layout,
};
use crate::args::{Kill, Process, Start};

/// Kills a process.
pub fn kill(args: &Kill) -> Result<()> {
    let request = Request::Kill {
        process: name(&args.process),
        signal: signal(&args.signal)? as i32,
        hold: args.hold,
    };
    ask(&args.process, &request)
}

/// Starts a process that was held down.
pub fn start(args: &Start) -> Result<()> {
    let process = name(&args.process);
    ask(&args.process, &Request::Start { process })
}

fn ask(process: &Process, request: &Request) -> Result<()> {
    let layout = Layout::new(process.target.name.clone());
    api::ask(&layout, request).map(|_| ())
}

fn name(process: &Process) -> ProcessName {
    ProcessName {
        kind: process.kind.as_str().to_owned(),
        node: process.node.map(|node| node.to_string()),
    }
}

fn signal(text: &str) -> Result<Signal> {
    let by_number = text
        .parse()
        .ok()
        .and_then(|number: i32| Signal::try_from(number).ok());
    let name = text.to_uppercase();
    let by_name = Signal::from_str(&format!("SIG{}", name.trim_start_matches("SIG"))).ok();
    by_number.or(by_name).ok_or_else(|| {
        Error::Usage(format!(
            "got the signal {text:?}, expected a name such as TERM, or a number"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_several_spellings() {
        for text in ["9", "KILL", "kill", "SIGKILL"] {
            assert_eq!(signal(text).ok(), Some(Signal::SIGKILL), "{text}");
        }
        assert!(signal("NOPE").is_err_and(|error| error.exit_code() == 64));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The one place where an outcome becomes what the runtime reads: stdout and the exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use cni_plugin::reply::{ErrorReply, VersionReply};
use serde_json::value::RawValue;

use crate::{
    config::{NEWEST, SUPPORTED},
    error::Error,
};

/// How an invocation ended.
#[derive(Debug)]
pub struct Outcome {
    /// The configuration's `cniVersion`, which every reply repeats.
    pub version: String,
    /// What to say.
    pub result: Result<Success, Error>,
}

/// What a success says.
#[derive(Debug)]
pub enum Success {
    /// ADD: the result of the plugin before us.
    Result(Box<RawValue>),
    /// VERSION.
    Versions,
    /// The other commands say nothing.
    Silent,
}

// === impl Outcome ===

impl Outcome {
    /// A failure before the configuration's version was known.
    pub fn of_unknown_version(error: Error) -> Self {
        Self {
            version: NEWEST.to_owned(),
            result: Err(error),
        }
    }
}

/// Writes the reply. A failure exits with 1, because an exit code has 8 bits and a CNI code more.
pub fn finish(outcome: &Outcome, mut stdout: impl Write) -> ExitCode {
    match print(outcome, &mut stdout) {
        Ok(()) if outcome.result.is_ok() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("culvert-cni: could not write the reply to stdout: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(outcome: &Outcome, stdout: &mut impl Write) -> io::Result<()> {
    match &outcome.result {
        Ok(Success::Result(result)) => stdout.write_all(result.get().as_bytes())?,
        Ok(Success::Versions) => print_versions(&outcome.version, stdout)?,
        Ok(Success::Silent) => {}
        Err(error) => print_error(&outcome.version, error, stdout)?,
    }
    stdout.flush()
}

fn print_versions(version: &str, stdout: &mut impl Write) -> io::Result<()> {
    let supported: Result<_, _> = SUPPORTED.iter().map(|version| version.parse()).collect();
    let reply = VersionReply {
        cni_version: version
            .parse()
            .or_else(|_| NEWEST.parse())
            .map_err(io::Error::other)?,
        supported_versions: supported.map_err(io::Error::other)?,
    };
    Ok(serde_json::to_writer(stdout, &reply)?)
}

fn print_error(version: &str, error: &Error, stdout: &mut impl Write) -> io::Result<()> {
    eprintln!("culvert-cni: {error}: {}", error.details());
    let reply = ErrorReply {
        cni_version: version
            .parse()
            .or_else(|_| NEWEST.parse())
            .map_err(io::Error::other)?,
        code: i32::try_from(error.code()).unwrap_or(i32::MAX),
        msg: &error.to_string(),
        details: error.details(),
    };
    Ok(serde_json::to_writer(stdout, &reply)?)
}

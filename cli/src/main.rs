// SPDX-License-Identifier: Apache-2.0
//! The command line of Culvert.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod output;
mod sandbox;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => return usage(&message),
    };
    let ran = match cli.command {
        Command::Sandbox(sandbox) => sandbox::run(sandbox.command),
        Command::Completion { shell } => {
            args::complete(shell);
            Ok(())
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Help is no mistake; the rest is `EX_USAGE` of sysexits.h.
fn usage(message: &clap::Error) -> ExitCode {
    // Nothing is left to say it with if the terminal is gone.
    let _ = message.print();
    ExitCode::from(if message.use_stderr() { 64 } else { 0 })
}

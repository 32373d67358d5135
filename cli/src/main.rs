// SPDX-License-Identifier: Apache-2.0
//! The command line of Culvert.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod certificates;
mod chart;
mod check;
mod cluster;
mod inject;
mod install;
mod left;
mod output;
mod sandbox;
mod uninstall;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => return usage(&message),
    };
    let ran = match cli.command {
        Command::Check(args) => return exit(check::check(&args)),
        Command::Version(args) => return exit(check::version(&args)),
        Command::Install(args) => return ended(install::install(&args)),
        Command::Upgrade(args) => return ended(install::upgrade(&args)),
        Command::Uninstall(args) => return ended(uninstall::uninstall(&args)),
        Command::Inject(args) => return ended(inject::inject(&args)),
        Command::Uninject(args) => return ended(inject::uninject(&args)),
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

/// Says what went wrong with an installation.
fn ended(ended: install::Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// What a command says of itself, or 1 if it could not say it.
fn exit(ended: std::io::Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        output::error(&error.to_string());
        ExitCode::FAILURE
    })
}

/// Help is no mistake; the rest is `EX_USAGE` of sysexits.h.
fn usage(message: &clap::Error) -> ExitCode {
    // Nothing is left to say it with if the terminal is gone.
    let _ = message.print();
    ExitCode::from(if message.use_stderr() { 64 } else { 0 })
}

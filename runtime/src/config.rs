// SPDX-License-Identifier: Apache-2.0
//! From the command line to a configuration: every mistake is told at once, and ends the process
//! with `EX_USAGE`.

use std::{fmt, process::ExitCode};

use clap::{Args, CommandFactory, Parser};

use crate::log::{self, Format};

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

/// Everything that is wrong with the flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

/// The flags of the log, for a process to flatten into its own.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// What to log: a level, or a list of target=level.
    #[arg(
        long,
        env = "CULVERT_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,
    /// How log lines look.
    #[arg(
        long,
        env = "CULVERT_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "plain"
    )]
    pub log_format: Format,
}

/// Reads the command line, makes the configuration of it, and starts the log as `log` finds it
/// there; or says what is wrong. The code is what the process should exit with.
pub fn start<A, C>(log: impl FnOnce(&C) -> (&str, Format)) -> Result<C, ExitCode>
where
    A: Parser + CommandFactory,
    C: TryFrom<A, Error = Mistakes>,
{
    let config = read::<A, C>()?;
    let (filter, format) = log(&config);
    start_log(filter, format)?;
    Ok(config)
}

fn read<A, C>() -> Result<C, ExitCode>
where
    A: Parser + CommandFactory,
    C: TryFrom<A, Error = Mistakes>,
{
    let args = A::try_parse().map_err(|error| {
        // Nothing is left to say it with if the terminal is gone.
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
    })?;
    C::try_from(args).map_err(|mistakes| {
        eprintln!("{mistakes}See {} --help.", A::command().get_name());
        ExitCode::from(USAGE)
    })
}

fn start_log(filter: &str, format: Format) -> Result<(), ExitCode> {
    log::init(filter, format).map_err(|error| {
        eprintln!("--log: {error}");
        ExitCode::from(USAGE)
    })
}

// === impl Mistakes ===

impl Mistakes {
    /// The value, unless it is a mistake.
    pub fn take<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|mistake| self.0.push(mistake)).ok()
    }
}

/// A line each.
impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|mistake| writeln!(f, "{mistake}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_has_its_line() {
        let mut mistakes = Mistakes::default();
        assert_eq!(mistakes.take(Ok(1)), Some(1));
        assert_eq!(mistakes.take::<()>(Err("--a: no".into())), None);
        assert_eq!(mistakes.take::<()>(Err("--b: no".into())), None);
        assert_eq!(mistakes.to_string(), "--a: no\n--b: no\n");
    }
}

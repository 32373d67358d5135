// SPDX-License-Identifier: Apache-2.0
//! The process's log, on stderr.

use std::{error::Error, iter};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

/// Starts the log. `filter` is a level or a list of `target=level`, as `tracing-subscriber` has it.
/// A second call changes nothing.
pub fn init(filter: &str, format: Format) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let started = match format {
        Format::Plain => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "The log was already started");
    }
    Ok(())
}

/// An error and what caused it, each thing once: of some errors the message ends in the cause, of
/// others it leaves that to their source.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |said, cause| {
        let cause = cause.to_string();
        match said.contains(&cause) {
            true => said,
            false => format!("{said}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("middle: {0}; what to do")]
    struct Middle(#[source] io::Error);

    #[test]
    fn an_error_says_everything_once() {
        let error = Outer(Middle(io::Error::other("inner")));
        assert_eq!(with_causes(&error), "outer: middle: inner; what to do");
    }
}

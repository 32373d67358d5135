// SPDX-License-Identifier: Apache-2.0
//! `culvert-control`: the control plane.

use std::process::ExitCode;

use clap::Parser;
use culvert_control::{
    app,
    config::{Args, Config},
};

/// `EX_USAGE` of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let config = match Config::try_from(Args::parse()) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(USAGE);
        }
    };
    if let Err(error) = culvert_runtime::log::init(&config.log, config.log_format) {
        eprintln!("--log: {error}");
        return ExitCode::from(USAGE);
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "Control failed");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    app::build(config).await?.wait().await
}

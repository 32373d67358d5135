// SPDX-License-Identifier: Apache-2.0
//! `culvert-agent`: the node agent.

use std::process::ExitCode;

use clap::Parser;
use culvert_agent::{
    app,
    config::{Args, Config},
};
use culvert_runtime::shutdown;

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
            tracing::error!(error = %format!("{error:#}"), "The agent failed");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    let serve = async { Ok(app::build(config).await?.wait().await) };
    tokio::select! {
        served = serve => served.map(|never| match never {}),
        signal = shutdown::requested() => {
            tracing::info!(signal = signal?, "The agent stops; its pods stay steered");
            Ok(())
        }
    }
}

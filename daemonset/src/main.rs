// SPDX-License-Identifier: Apache-2.0
//! `culvert-agent`: the node agent.

use std::process::ExitCode;

use culvert_agent::{
    app,
    config::{Args, Config},
};
use culvert_runtime::{config, shutdown};

fn main() -> ExitCode {
    let config: Config = match config::read::<Args, _>() {
        Ok(config) => config,
        Err(code) => return code,
    };
    if let Err(code) = config::start_log(&config.log, config.log_format) {
        return code;
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

// SPDX-License-Identifier: Apache-2.0
//! `culvert-agent`: the node agent.

use std::process::ExitCode;

use culvert_agent::{
    app,
    config::{Args, Config},
};
use culvert_runtime::{config, log, shutdown};

fn main() -> ExitCode {
    let config = config::start::<Args, Config>(|config| (&config.log, config.log_format));
    let config = match config {
        Ok(config) => config,
        Err(code) => return code,
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %log::with_causes(error.as_ref()), "The agent failed");
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

// SPDX-License-Identifier: Apache-2.0
//! `culvert-agent`: the node agent.

use std::{pin::pin, process::ExitCode};

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
            let error = log::with_causes(error.as_ref());
            tracing::error!(error, "The agent failed");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    let mut signal = pin!(shutdown::requested());
    let mut agent = tokio::select! {
        built = app::build(config) => built?,
        signal = &mut signal => {
            stay(signal?);
            return Ok(());
        }
    };
    let uninstall = agent.uninstall();
    let end = async {
        let signal = signal.await?;
        match uninstall {
            Some(uninstall) if uninstall.is_wanted().await => uninstall.run().await,
            _ => stay(signal),
        }
        Ok(())
    };
    tokio::select! {
        never = agent.wait() => match never {},
        ended = end => ended,
    }
}

fn stay(signal: &str) {
    tracing::info!(signal, "The agent stops; its pods stay steered");
}

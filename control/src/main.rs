// SPDX-License-Identifier: Apache-2.0
//! `culvert-control`: the control plane.

use std::process::ExitCode;

use culvert_control::{
    app,
    config::{Args, Config},
};
use culvert_runtime::{config, log};

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
            tracing::error!(error, "Control failed");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    app::build(config).await?.wait().await
}

// SPDX-License-Identifier: Apache-2.0
//! `culvert-control`: the control plane.

use std::process::ExitCode;

use culvert_control::{
    app,
    config::{Args, Config},
};
use culvert_runtime::config;

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
            tracing::error!(error = %format!("{error:#}"), "Control failed");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    app::build(config).await?.wait().await
}

// SPDX-License-Identifier: Apache-2.0
//! `culvert-proxy`, the node proxy.

use std::process::ExitCode;

use culvert_proxy::{
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
            eprintln!("culvert-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    app::give_up_rights(&config)?;
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tracing::info!(?config, "Starting");
    let data = app::data_runtime(config.threads)?;
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    control.block_on(async {
        app::build(config, data.handle().clone())
            .await?
            .wait()
            .await
    })?;
    data.shutdown_background();
    Ok(())
}

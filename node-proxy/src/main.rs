// SPDX-License-Identifier: Apache-2.0
//! `culvert-proxy`, the node proxy.

use std::process::ExitCode;

use culvert_proxy::{
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
            eprintln!("culvert-proxy: {}", log::with_causes(error.as_ref()));
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

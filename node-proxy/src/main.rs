// SPDX-License-Identifier: Apache-2.0
//! `culvert-proxy`, the node proxy.

use std::process::ExitCode;

use clap::Parser;
use culvert_proxy::{
    app,
    config::{Args, Config},
};

/// `EX_USAGE` of sysexits(3).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(USAGE);
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    culvert_runtime::log::init(&config.log, config.log_format)?;
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

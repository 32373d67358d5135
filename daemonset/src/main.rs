// SPDX-License-Identifier: Apache-2.0
//! `culvert-agent`: the node agent.

use std::{pin::pin, process::ExitCode};

use culvert_agent::{
    app::{self, Departure, Ready, Uninstall},
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
    let cluster = tokio::select! {
        // The handler is there before anything is begun.
        biased;
        signal = &mut signal => {
            note_end(signal?);
            return Ok(());
        }
        cluster = app::cluster(&config) => cluster?,
    };
    let uninstall = cluster
        .as_ref()
        .map(|cluster| app::uninstall(&config, cluster));
    let mut build = pin!(app::build(config, cluster));
    let ready = tokio::select! {
        ready = &mut build => ready?,
        signal = &mut signal => return match departure(signal?, uninstall).await {
            Some(departure) => leave_early(departure, build).await,
            None => Ok(()),
        },
    };
    let (agent, started) = ready.go_on()?;
    let end = async {
        if let Some(departure) = departure(signal.await?, uninstall).await {
            departure.run(started).await;
        }
        Ok(())
    };
    tokio::select! {
        never = agent.wait() => match never {},
        ended = end => ended,
    }
}

/// None: all stays as it is.
async fn departure(signal: &str, uninstall: Option<Uninstall>) -> Option<Departure> {
    let departure = match uninstall {
        Some(uninstall) => uninstall.begin().await,
        None => None,
    };
    if departure.is_none() {
        note_end(signal);
    }
    departure
}

/// Only an agent that has started can take pods out of the mesh.
async fn leave_early(
    mut departure: Departure,
    build: impl Future<Output = anyhow::Result<Ready>>,
) -> anyhow::Result<()> {
    let Some(ready) = departure.start(build).await else {
        return Ok(());
    };
    let (agent, started) = ready.leave();
    tokio::select! {
        never = agent.wait() => match never {},
        () = departure.run(started) => Ok(()),
    }
}

fn note_end(signal: &str) {
    tracing::info!(signal, "The agent stops; its pods stay steered");
}

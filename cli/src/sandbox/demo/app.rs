// SPDX-License-Identifier: Apache-2.0
//! The programs of the demonstration: a server that answers requests and a client that sends them.
//! They know nothing of the mesh: names, sockets, HTTP. Each keeps one connection to whom it asks.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use self::{serve::Server, upstream::Upstream};
use super::evidence::Report;
use crate::{
    args::DemoApp,
    sandbox::error::{Doing, Result},
};

mod grpc;
mod serve;
mod upstream;

const REPORT: Duration = Duration::from_secs(1);

/// Runs one of the programs. Returns only when it can't go on.
pub fn run(app: DemoApp) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.doing(|| "start a runtime".into())?;
    match app {
        DemoApp::Server(args) => {
            let serving = async { Server::new(args)?.serve().await };
            runtime.block_on(serving).doing(|| "serve".into())
        }
        DemoApp::Client {
            target,
            payload,
            interval,
        } => {
            let asking = ask_forever(&target, &payload, interval);
            runtime.block_on(asking).doing(|| "ask".into())
        }
    }
}

async fn ask_forever(target: &str, payload: &str, interval: Duration) -> io::Result<()> {
    let name = hostname()?;
    let mut upstream = Upstream::new(target);
    let (mut report, mut said) = (Report::default(), Instant::now());
    for number in 0_u64.. {
        let line = format!("{payload} {number}");
        match upstream.ask(&line).await {
            Ok((answer, own)) if answer.contains(&line) => report.count(&name, &answer, own),
            failed => {
                report.failed += 1;
                println!("request {number} failed: {failed:?}");
            }
        }
        report.connections = upstream.connections();
        if said.elapsed() >= REPORT {
            println!("{}", report.line());
            said = Instant::now();
        }
        sleep(interval).await;
    }
    Ok(())
}

/// What a server answers: who it is, whom it saw, and what it was sent.
fn answer(name: &str, peer: IpAddr, line: &str) -> String {
    format!("{name} saw {}: {line}", peer.to_canonical())
}

fn hostname() -> io::Result<String> {
    Ok(nix::unistd::gethostname()?.display().to_string())
}

#[cfg(test)]
mod tests;

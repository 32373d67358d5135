// SPDX-License-Identifier: Apache-2.0
//! The program that runs in the pods of the tests: servers, clients, and what else they need.

use clap::Parser;
use culvert_tests::app::{connect, hold, peer, report, serve};

#[derive(Parser)]
#[command(about)]
enum Program {
    Serve(serve::Serve),
    Connect(connect::Connect),
    Hold(hold::Hold),
    Peer(peer::Peer),
}

fn main() -> anyhow::Result<()> {
    match Program::parse() {
        Program::Serve(serve) => serve::run(&serve),
        Program::Connect(connect) => report::say(&connect::run(&connect)?),
        Program::Hold(hold) => hold::run(&hold),
        Program::Peer(peer) => peer::run(&peer),
    }
}

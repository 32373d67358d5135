// SPDX-License-Identifier: Apache-2.0
//! The program that runs in the pods of the tests: servers, clients, and what else they need.

use clap::Parser;
use culvert_tests::app::{
    call, connect, hold, peer, relay, report, requests, serve, stream, turned,
};

#[derive(Parser)]
#[command(about)]
enum Program {
    Call(call::Call),
    Serve(serve::Serve),
    Connect(connect::Connect),
    Hold(hold::Hold),
    Peer(peer::Peer),
    Relay(relay::Relay),
    Requests(requests::Requests),
    Stream(stream::Stream),
    Turned(turned::Turned),
}

fn main() -> anyhow::Result<()> {
    match Program::parse() {
        Program::Call(call) => report::say(&call::run(&call)?),
        Program::Serve(serve) => serve::run(&serve),
        Program::Connect(connect) => report::say(&connect::run(&connect)?),
        Program::Hold(hold) => hold::run(&hold),
        Program::Peer(peer) => peer::run(&peer),
        Program::Relay(relay) => relay::run(&relay),
        Program::Requests(requests) => report::say(&requests::run(&requests)?),
        Program::Stream(stream) => stream::run(&stream),
        Program::Turned(turned) => turned::run(&turned),
    }
}

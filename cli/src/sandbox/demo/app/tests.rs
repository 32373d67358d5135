// SPDX-License-Identifier: Apache-2.0
use tokio::net::TcpListener;

use super::*;
use crate::args::DemoServer;

async fn start(args: DemoServer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.unwrap_or_else(|e| panic!("{e}"));
    let addr = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
    let server = Server::new(args).unwrap_or_else(|e| panic!("{e}"));
    tokio::spawn(server.serve_on(listener));
    addr.to_string()
}

fn args(upstream: Option<String>, grpc: bool, fail_one_in: u64) -> DemoServer {
    DemoServer {
        port: 0,
        upstream,
        grpc,
        latency: Duration::ZERO,
        fail_one_in,
    }
}

#[tokio::test]
async fn a_chain_of_servers_says_whom_each_saw() {
    let db = start(args(None, true, 3)).await;
    let web = start(args(Some(format!("grpc://{db}")), false, 0)).await;
    let mut upstream = Upstream::new(&web);
    let mut replies = Vec::new();
    for _ in 0..3 {
        let asked = upstream.ask("hello").await;
        replies.push(asked.unwrap_or_else(|e| panic!("{e}")));
    }
    for (reply, own) in &replies[..2] {
        let seen = format!(" saw {own}: hello");
        assert_eq!(reply.matches(&seen).count(), 2, "{reply}");
    }
    assert!(replies[2].0.ends_with("is not well"), "{replies:?}");
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn a_server_that_says_no_keeps_its_connection() {
    for grpc in [true, false] {
        let server = start(args(None, grpc, 2)).await;
        let scheme = if grpc { "grpc://" } else { "" };
        let mut upstream = Upstream::new(&format!("{scheme}{server}"));
        assert!(upstream.ask("one").await.is_ok());
        assert!(upstream.ask("two").await.is_err());
        assert!(upstream.ask("three").await.is_ok());
        assert_eq!(upstream.connections(), 1);
    }
}

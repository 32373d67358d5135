// SPDX-License-Identifier: Apache-2.0
//! What both proxies count of the requests between a client and a server, by the server's account.

use std::time::Duration;

use anyhow::ensure;

use super::{CLIENT, spiffe};
use crate::{
    sandbox::{Daemon, Sandbox},
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(10);

/// Requests from the client to a server, so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Requests {
    /// By the client's proxy, as mutual TLS to that very server.
    pub outbound: f64,
    /// By the server's proxy, as mutual TLS from that very client.
    pub inbound: f64,
    /// Answers that the client's proxy has counted.
    pub answered: f64,
}

/// Does `work`, which says how many requests it sent, and fails unless both proxies counted just
/// these under both identities, and the client's as many answers.
pub fn counted<T>(
    sandbox: &Sandbox,
    server: &str,
    work: impl FnOnce() -> anyhow::Result<(u32, T)>,
) -> anyhow::Result<T> {
    let before = Requests::to(sandbox, server)?;
    let (sent, done) = work()?;
    let sent = f64::from(sent);
    let expected = Requests {
        outbound: before.outbound + sent,
        inbound: before.inbound + sent,
        answered: before.answered + sent,
    };
    wait_for(&format!("{sent} requests to {server}"), SOON, || {
        let now = Requests::to(sandbox, server)?;
        ensure!(now == expected, "{before:?} became {now:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(done)
}

// === impl Requests ===

impl Requests {
    /// What has been counted to a server.
    pub fn to(sandbox: &Sandbox, server: &str) -> anyhow::Result<Self> {
        let (client_id, server_id) = (spiffe(CLIENT), spiffe(server));
        let outbound = [
            ("direction", "outbound"),
            ("pod", CLIENT),
            ("tls", "true"),
            ("server_id", &*server_id),
        ];
        let inbound = [
            ("direction", "inbound"),
            ("service_account", server),
            ("tls", "true"),
            ("client_id", &*client_id),
        ];
        let near = sandbox.scrape(Daemon::Proxy("n1"))?;
        let far = sandbox.scrape(Daemon::Proxy("n2"))?;
        Ok(Self {
            outbound: near.sum("request_total", &outbound),
            inbound: far.sum("request_total", &inbound),
            answered: near.sum("response_total", &outbound),
        })
    }
}

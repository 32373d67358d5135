// SPDX-License-Identifier: Apache-2.0
//! The same use of a socket in a meshed pod and in an unmeshed one, which must get the same answers.
//!
//! The pods are `client` and `server`, and unmeshed `client-plain` and `server-plain`.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::{
    app::{call::Called, report::Closed},
    sandbox::{Daemon, Sandbox},
    wait::wait_for,
};

/// How long a server's log may take.
const SOON: Duration = Duration::from_secs(15);

/// What a way of using a socket did in a pod: `way` is that of `culvert-testapp call`.
pub fn call(
    sandbox: &Sandbox,
    pod: &str,
    way: &str,
    to: &str,
    more: &[&str],
) -> anyhow::Result<Called> {
    let testapp = sandbox.testapp().to_str().context("the path is no UTF-8")?;
    let command = [&[testapp, "call", way, to], more].concat();
    sandbox.exec(pod, &command)?.json()
}

/// Both pods get the expected answers, the meshed one over mutual TLS.
pub fn same(
    sandbox: &Sandbox,
    way: &str,
    port: u16,
    more: impl Fn(&str) -> anyhow::Result<Vec<String>>,
    expected: &[&str],
) -> anyhow::Result<()> {
    let before = mutual(sandbox)?;
    for suffix in ["", "-plain"] {
        let to = sandbox.at(&format!("server{suffix}"), port)?;
        let more = more(suffix)?;
        let more: Vec<_> = more.iter().map(String::as_str).collect();
        let called = call(sandbox, &format!("client{suffix}"), way, &to, &more)?;
        called
            .expect(expected)
            .with_context(|| format!("{way} in client{suffix}"))?;
    }
    let after = mutual(sandbox)?;
    ensure!(
        after > before,
        "{way} went around the mesh: {before} connections, {after} after"
    );
    Ok(())
}

/// No further flags.
pub fn nothing_more(_: &str) -> anyhow::Result<Vec<String>> {
    Ok(Vec::new())
}

/// How many connections `client` has opened with mutual TLS.
pub fn mutual(sandbox: &Sandbox) -> anyhow::Result<f64> {
    let labels = [
        ("pod", "client"),
        ("direction", "outbound"),
        ("tls", "true"),
    ];
    sandbox.metric(Daemon::Proxy("n1"), "tcp_open_total", &labels)
}

/// Waits until a server has logged a connection of a port that ended so.
pub fn ended(
    sandbox: &Sandbox,
    server: &str,
    port: u16,
    ends: &[&str],
    bytes: u64,
) -> anyhow::Result<()> {
    let what = format!("{ends:?} after {bytes} bytes on port {port} of {server}");
    wait_for(&what, SOON, || {
        let logs = sandbox.logs(server)?;
        let all = logs
            .lines()
            .filter_map(|line| serde_json::from_str::<Closed>(line).ok());
        let of_port: Vec<_> = all.filter(|closed| closed.port == port).collect();
        let found = of_port
            .iter()
            .any(|at| ends.contains(&at.end.as_str()) && at.bytes == bytes);
        ensure!(found, "{:?}", of_port.last());
        Ok(())
    })
}

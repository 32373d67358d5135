// SPDX-License-Identifier: Apache-2.0
//! What HTTP must not cost: memory for whoever reads slowly, and time for whoever speaks no HTTP.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    manifests::Pod,
    programs::{CLIENT, PLAIN, shared, shell, source, through_the_mesh},
    sandbox::{Daemon, Sandbox},
};

use super::{Step, http1, said};

pub const STEPS: [Step; 4] = [
    ("a slow reader brings its server to a halt", halted),
    ("20 slow readers cost the proxies little memory", memory),
    ("a server that speaks first is not kept waiting", first_byte),
    ("MariaDB on an HTTP port is not kept waiting", database),
];
/// MariaDB on a port that nobody would think of.
pub const DATABASE: &str = "database";

/// What a proxy may keep of a stream that nobody reads: sockets' buffers aside, about the windows.
const PER_STREAM: f64 = 2_097_152.0;
const SLOW: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(40);

/// MariaDB on 8080, which is ready when its log says so: a probe would be a client that says nothing.
pub fn unusual(files: &Path, name: &str) -> anyhow::Result<Pod> {
    let dir = shared(files, name);
    fs::create_dir_all(&dir)?;
    let script = format!(
        "sed 's/--port=3306/--port=8080/' {} > {dir}/run.sh && exec sh {dir}/run.sh {dir}",
        source("mariadb.sh")
    );
    Ok(Pod::new(name, "n2", &["sh", "-c", &script]).tcp_probe(8080))
}

fn halted(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    super::requests(sandbox, "web", |host| http1(host, "slow_reader"))
}

fn resident(sandbox: &Sandbox, node: &str) -> anyhow::Result<f64> {
    sandbox.metric(Daemon::Proxy(node), "process_resident_memory_bytes", &[])
}

fn memory(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    let nodes = ["n1", "n2"];
    let host = sandbox.ip("web")?.to_string();
    let before = nodes.map(|node| resident(sandbox, node));
    let command = http1(&host, "hold_slow");
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    let mut slow = sandbox.spawn(CLIENT, &command)?;
    let held = slow.line(PATIENCE)?;
    let sent: f64 = held.strip_prefix("held ").context(held.clone())?.parse()?;
    for (node, before) in nodes.into_iter().zip(before) {
        let grown = resident(sandbox, node)? - before?;
        eprintln!("    {node}: {grown} bytes more for {sent} that servers sent");
        ensure!(
            grown < f64::from(SLOW) * PER_STREAM,
            "the proxy of {node} took {grown} bytes more"
        );
    }
    slow.say("")?;
    slow.finish(PATIENCE)?.ok()?;
    Ok(())
}

/// In microseconds.
fn within(meshed: f64, plain: f64) -> anyhow::Result<()> {
    eprintln!("    first byte after {meshed} µs, {plain} µs beside the mesh");
    // Detection waits for 10 ms before it dials; a machine that is busy, for longer.
    let most = 50_000.0 + 10.0 * plain;
    ensure!(meshed < most, "{meshed} µs, more than {most}");
    Ok(())
}

fn first_byte(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    let took = |client: &str, server: &str| {
        let host = sandbox.ip(server)?.to_string();
        Ok::<f64, anyhow::Error>(said(sandbox, client, &http1(&host, "speaks_first"))?.parse()?)
    };
    let meshed = through_the_mesh(sandbox, "web", 50, || took(CLIENT, "web"))?;
    within(meshed, took(&format!("{CLIENT}{PLAIN}"), "web-plain")?)
}

/// The time of a connection and a query, the median of 21.
fn database(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    let script = r#"
        for i in $(seq 21); do
            t0=$EPOCHREALTIME
            [ "$(mariadb --no-defaults -h "$1" -P 8080 -u root -BNe 'select 6 * 7')" = 42 ]
            t1=$EPOCHREALTIME
            awk "BEGIN { printf \"%d\n\", ($t1 - $t0) * 1e6 }"
        done | sort -n | sed -n 11p
    "#;
    let took = |client: &str, server: &str| {
        let host = sandbox.ip(server)?.to_string();
        let said = shell(sandbox, client, script, &[&host])?.stdout;
        Ok::<f64, anyhow::Error>(said.trim().parse()?)
    };
    let meshed = through_the_mesh(sandbox, DATABASE, 21, || took(CLIENT, DATABASE))?;
    let plain = format!("{DATABASE}{PLAIN}");
    within(meshed, took(&format!("{CLIENT}{PLAIN}"), &plain)?)
}

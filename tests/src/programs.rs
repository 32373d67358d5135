// SPDX-License-Identifier: Apache-2.0
//! What the tests of well-known programs share. Their pods come twice: `client` on the first node
//! and each server on the second, strict, and all of it beside the mesh with `-plain` behind the
//! name. What the pods run is in `tests/programs`.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::{
    capture::Capture,
    manifests::Pod,
    process::{Output, Running},
    sandbox::{Daemon, Plan, Sandbox},
    wait::wait_for,
};

pub mod replicas;
pub mod requests;

/// The pod of the clients.
pub const CLIENT: &str = "client";
/// What a pod beside the mesh has behind its name.
pub const PLAIN: &str = "-plain";

/// The longest that one step's program may take.
const PATIENCE: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(10);

/// A server, which `tests/programs/<name>.sh DIRECTORY` runs.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Its pod's name.
    pub name: &'static str,
    /// The port that it is ready on; none if a connection that says nothing would harm it.
    pub ready: Option<u16>,
}

/// What has been opened from the client to a server so far.
#[derive(Clone, Copy, Debug)]
struct Opened {
    /// By the client's proxy, as mutual TLS to that very server.
    outbound: f64,
    /// By the server's proxy, as mutual TLS from that very client.
    inbound: f64,
    /// By the server's proxy, in any other way.
    other: f64,
}

/// A sandbox's plan of the servers and their clients.
pub fn plan(name: &str, files: &Path, servers: &[Server]) -> anyhow::Result<Plan> {
    let mut plan = Plan::new(name)?;
    for suffix in ["", PLAIN] {
        let pod = |pod: Pod| if suffix.is_empty() { pod.strict() } else { pod };
        let client = format!("{CLIENT}{suffix}");
        plan = plan.pod(&pod(Pod::new(&client, "n1", &["sleep", "infinity"])))?;
        for server in servers {
            plan = plan.pod(&pod(server.pod(files, &format!("{}{suffix}", server.name))?))?;
        }
    }
    Ok(plan)
}

/// Where a program of `tests/programs` is.
pub fn source(name: &str) -> String {
    format!("{}/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Where `scripts/setup test` has installed what the Python programs need of PyPI: a directory per
/// set of pins.
pub fn venv() -> PathBuf {
    let requirements = include_str!("../programs/requirements.txt");
    let pins = requirements.lines().filter_map(|line| {
        let (name, rest) = line.split_once("==")?;
        Some(format!("{name}-{}", rest.trim_end_matches(" \\")))
    });
    Path::new("/opt/culvert-tests").join(pins.collect::<Vec<_>>().join("+"))
}

/// The Python that finds them.
pub fn python() -> String {
    venv().join("bin/python3").display().to_string()
}

/// The directory of a server's pod below that of the test, for what it shares with the client.
pub fn shared(files: &Path, pod: &str) -> String {
    files.join(pod).display().to_string()
}

/// Runs a script in a pod to its end; its arguments are `$1` and so on.
pub fn shell(sandbox: &Sandbox, pod: &str, script: &str, args: &[&str]) -> anyhow::Result<Output> {
    let command = [
        &["bash", "-euo", "pipefail", "-c", script, "bash"][..],
        args,
    ]
    .concat();
    sandbox.exec_for(PATIENCE, pod, &command)?.ok()
}

/// Starts a script in a pod.
pub fn start(sandbox: &Sandbox, pod: &str, script: &str, args: &[&str]) -> anyhow::Result<Running> {
    let command = [
        &["bash", "-euo", "pipefail", "-c", script, "bash"][..],
        args,
    ]
    .concat();
    sandbox.spawn(pod, &command)
}

/// Does `work`, and fails unless it opened at least that many connections from the client to the
/// server as mutual TLS under both identities, and none in any other way.
pub fn through_the_mesh<T>(
    sandbox: &Sandbox,
    server: &str,
    least: u32,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let before = Opened::to(sandbox, server)?;
    let done = work()?;
    let what = format!("{least} connections to {server} to be counted as mutual TLS");
    wait_for(&what, SOON, || {
        let now = Opened::to(sandbox, server)?;
        let least = f64::from(least);
        let enough =
            now.outbound >= before.outbound + least && now.inbound >= before.inbound + least;
        ensure!(enough, "before {before:?}, now {now:?}");
        ensure!(
            now.other == before.other,
            "not all are: before {before:?}, now {now:?}"
        );
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(done)
}

/// Has the client do an exchange whose plaintext holds `marker`. Nobody can read it between the
/// nodes; beside the mesh, with the same exchange, anybody can.
pub fn nobody_reads(
    sandbox: &Sandbox,
    (server, port): (&str, u16),
    marker: &str,
    exchange: impl Fn(&str, IpAddr) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for suffix in ["", PLAIN] {
        let ip = sandbox.ip(&format!("{server}{suffix}"))?;
        let captures = ["n1", "n2"].map(|node| Capture::start(&sandbox.node(node)));
        let client = format!("{CLIENT}{suffix}");
        let done = exchange(&client, ip);
        for capture in captures {
            let captured = capture?.stop()?.of(sandbox.ip(&client)?);
            let seen = captured.count(marker.as_bytes());
            if suffix.is_empty() {
                captured.tls_only(ip, port)?;
            }
            ensure!(
                (seen > 0) == (suffix == PLAIN),
                "{seen} packets to {server}{suffix} hold {marker:?}"
            );
        }
        done.with_context(|| format!("{server}{suffix}"))?;
    }
    Ok(())
}

// === impl Server ===

impl Server {
    /// A server that is ready when a TCP connection to a port opens.
    pub const fn new(name: &'static str, port: u16) -> Self {
        let ready = Some(port);
        Self { name, ready }
    }

    /// A pod of this name on the second node that runs it.
    pub fn pod(self, files: &Path, name: &str) -> anyhow::Result<Pod> {
        let dir = shared(files, name);
        fs::create_dir_all(&dir)?;
        let program = source(&format!("{}.sh", self.name));
        let pod = Pod::new(name, "n2", &["sh", &program, &dir]);
        Ok(match self.ready {
            Some(port) => pod.tcp_probe(port),
            None => pod,
        })
    }
}

// === impl Opened ===

impl Opened {
    fn to(sandbox: &Sandbox, server: &str) -> anyhow::Result<Self> {
        let (client_id, server_id) = (spiffe(CLIENT), spiffe(server));
        let outbound = [
            ("direction", "outbound"),
            ("pod", CLIENT),
            ("tls", "true"),
            ("server_id", &*server_id),
        ];
        let of_client = [
            ("direction", "inbound"),
            ("pod", server),
            ("tls", "true"),
            ("client_id", &*client_id),
        ];
        let any = [("direction", "inbound"), ("peer", "src"), ("pod", server)];
        let scrape = sandbox.scrape(Daemon::Proxy("n2"))?;
        let inbound = scrape.sum("tcp_open_total", &of_client);
        Ok(Self {
            outbound: sandbox.metric(Daemon::Proxy("n1"), "tcp_open_total", &outbound)?,
            inbound,
            other: scrape.sum("tcp_open_total", &any) - inbound,
        })
    }
}

/// The identity of an account of the tests' namespace.
pub fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

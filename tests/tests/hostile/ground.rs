// SPDX-License-Identifier: Apache-2.0
//! The pods of these tests, and the bystanders that must not notice.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::hold::Held,
    manifests::Pod,
    process::{Running, run},
    sandbox::{Daemon, Plan, Sandbox},
    tls::{self, Authority, Ending, Hello},
    wait::wait_for,
};

pub const SOON: Duration = Duration::from_secs(10);
pub const ECHO: u16 = 7000;

/// On the first node the meshed client `mesh` and the attacker's `plain`; on the second the servers
/// `open` (permissive), `strict` and `other` (strict), and `outside`, which is not meshed.
pub fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("hostile")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo"]);
    let sandbox = plan
        .pod(&pod("mesh", "n1").meshed())?
        .pod(&pod("plain", "n1"))?
        .pod(&pod("open", "n2").meshed())?
        .pod(&pod("strict", "n2").strict())?
        .pod(&pod("other", "n2").strict())?
        .pod(&pod("outside", "n2"))?
        .up()?;
    for pod in ["strict", "other", "open"] {
        sandbox.answers("mesh", pod, ECHO)?;
    }
    trust(&sandbox)?;
    Ok(sandbox)
}

/// The attackers' authority, which the mesh trusts beside its own: whose certificates are refused
/// all the same, are refused for what is wrong with them. (Control's own signs leaves only.)
pub fn authority(sandbox: &Sandbox) -> anyhow::Result<Authority> {
    Authority::kept(&sandbox.root().join("hostile"))
}

fn trust(sandbox: &Sandbox) -> anyhow::Result<()> {
    let anchor = Authority::make(&sandbox.root().join("hostile"))?;
    let file = sandbox.root().join("control/trust-anchors.pem");
    let anchors = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{anchors}\n{anchor}"))?;
    for pod in ["mesh", "strict", "other", "open"] {
        wait_for(
            &format!("{pod} to trust the attackers' authority"),
            SOON * 3,
            || {
                let own = authority(sandbox)?.sign("plain")?;
                let hello = Hello::mesh(pod, b"hello");
                let ending =
                    tls::connect(&sandbox.pod("plain"), at(sandbox, pod)?, &hello, Some(own))?;
                ensure!(ending == Ending::Answered(b"hello".to_vec()), "{ending:?}");
                Ok::<_, anyhow::Error>(())
            },
        )?;
    }
    Ok(())
}

/// Where a pod's echo server is.
pub fn at(sandbox: &Sandbox, pod: &str) -> anyhow::Result<SocketAddr> {
    Ok(sandbox.at(pod, ECHO)?.parse()?)
}

/// A connection from the attacker's pod, with its first bytes in the handshake as a proxy sends them.
pub fn dial(sandbox: &Sandbox, pod: &str) -> anyhow::Result<TcpStream> {
    let addr = at(sandbox, pod)?;
    sandbox.pod("plain").run(move || tls::dial(addr))
}

/// How many inbound connections of a pod of the second node failed with this `error`.
pub fn errors(sandbox: &Sandbox, pod: &str, error: &str) -> anyhow::Result<f64> {
    let labels = [("pod", pod), ("error", error)];
    sandbox.metric(Daemon::Proxy("n2"), "inbound_tcp_errors_total", &labels)
}

/// Runs an attack that is counted as `error`, exactly `times` times.
pub fn counted<T>(
    sandbox: &Sandbox,
    pod: &str,
    (error, times): (&str, u32),
    attack: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let before = errors(sandbox, pod, error)?;
    let result = attack()?;
    wait_for(
        &format!("{times} more errors `{error}` of {pod}"),
        SOON,
        || {
            let more = errors(sandbox, pod, error)? - before;
            ensure!(
                more == f64::from(times),
                "there are {more}: {}",
                nearest(sandbox, pod)?
            );
            Ok::<_, anyhow::Error>(())
        },
    )?;
    Ok(result)
}

fn nearest(sandbox: &Sandbox, pod: &str) -> anyhow::Result<String> {
    let scrape = sandbox.scrape(Daemon::Proxy("n2"))?;
    let labels = [("pod", pod)];
    let all = scrape.matching("inbound_tcp_errors_total", &labels);
    let all: Vec<_> = all
        .map(|s| format!("{:?} {}", s.labels.get("error"), s.value))
        .collect();
    Ok(all.join(", "))
}

/// A connection to every server that lives through whatever is done meanwhile, and the processes.
pub struct Bystanders {
    held: Vec<(&'static str, Running)>,
    proxies: [u64; 2],
}

// === impl Bystanders ===

impl Bystanders {
    pub fn start(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let mut held = Vec::new();
        for pod in ["strict", "other", "open"] {
            let mut app = sandbox.spawn_app("mesh", &["hold", &sandbox.at(pod, ECHO)?])?;
            let open: Held = app.next(SOON)?;
            ensure!(open.working == 1, "{pod}: {open:?}");
            held.push((pod, app));
        }
        Ok(Self {
            held,
            proxies: proxies(sandbox)?,
        })
    }

    /// Nobody noticed.
    pub fn unharmed(self, sandbox: &Sandbox) -> anyhow::Result<()> {
        for (pod, mut app) in self.held {
            app.say("still there")?;
            let held: Held = app
                .next(SOON)
                .with_context(|| format!("the bystander of {pod}"))?;
            ensure!(held.working == 1, "the bystander of {pod}: {held:?}");
            app.finish(SOON)?.ok()?;
        }
        ensure!(proxies(sandbox)? == self.proxies, "a proxy was restarted");
        let panics = sandbox.metric(Daemon::Proxy("n2"), "proxy_panics_total", &[])?;
        ensure!(panics == 0.0, "{panics} tasks panicked");
        Ok(())
    }
}

fn proxies(sandbox: &Sandbox) -> anyhow::Result<[u64; 2]> {
    Ok([
        sandbox.pid(Daemon::Proxy("n1"))?,
        sandbox.pid(Daemon::Proxy("n2"))?,
    ])
}

/// Runs `attack` between two looks at the bystanders.
pub fn among_bystanders<T>(
    sandbox: &Sandbox,
    attack: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let bystanders = Bystanders::start(sandbox)?;
    let result = attack()?;
    bystanders.unharmed(sandbox)?;
    Ok(result)
}

/// The memory of a proxy in bytes, anonymous pages only.
pub fn memory(sandbox: &Sandbox, node: &str) -> anyhow::Result<u64> {
    let pid = sandbox.pid(Daemon::Proxy(node))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.context("no RssAnon")?.parse::<u64>()? << 10)
}

/// Runs `ip` in a namespace.
pub fn ip(netns: &std::path::Path, args: &[&str]) -> anyhow::Result<()> {
    let name = netns
        .file_name()
        .and_then(|name| name.to_str())
        .context("no name")?;
    let mut ip = std::process::Command::new("ip");
    run(ip.args(["-n", name]).args(args), SOON)?.ok()?;
    Ok(())
}

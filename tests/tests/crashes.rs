// SPDX-License-Identifier: Apache-2.0
//! Agent, proxy and control killed in every pair and order under load; a proxy that stalls; keys
//! that are lost. Never plaintext on the wire, and everything as it was when all is back.

#[path = "crashes/lost.rs"]
mod lost;

use std::{collections::BTreeSet, fmt, fs, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::report::Report,
    capture::Capture,
    manifests::Pod,
    process::Running,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(120);
/// What is sent, and looked for on the wire.
const SECRET: &str = "nobody-reads-this-on-the-wire";
/// How many connections are under way at a time.
const CLIENTS: u64 = 4;
const NODES: [&str; 2] = ["n1", "n2"];

/// A process of Culvert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Agent,
    Proxy,
    Control,
}

/// When the two come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    AtOnce,
    FirstFirst,
    SecondFirst,
}

/// Two are killed, one after the other.
#[derive(Clone, Copy, Debug)]
struct Crash {
    node: &'static str,
    first: Part,
    second: Part,
    back: Back,
}

#[test]
fn crashes() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    let mut before = None;
    suite.step("what is open and pinned is noted", |s| {
        before = Some(Held::of(s)?);
        Ok(())
    });
    for crash in Crash::all() {
        suite.step(&crash.to_string(), |s| crash.play(s));
    }
    for (name, step) in lost::STEPS.into_iter().take(10) {
        suite.step(name, step);
    }
    suite.step("nothing is left open or pinned", |s| {
        before.context("nothing was noted")?.is_kept(s)
    });
    for (name, step) in lost::STEPS.into_iter().skip(10) {
        suite.step(name, step);
    }
    suite.finish()
}

type Step = fn(&Sandbox) -> anyhow::Result<()>;

fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("crashes")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo"]);
    let sandbox = plan
        .pod(&pod("client", "n1").strict())?
        .pod(&pod("server", "n2").strict())?
        .pod(&pod("plain", "n1"))?
        .up()?;
    sandbox.answers("client", "server", 7000)?;
    sandbox.answers("server", "client", 7000)?;
    Ok(sandbox)
}

// === impl Part ===

impl Part {
    const ALL: [Self; 3] = [Self::Agent, Self::Proxy, Self::Control];

    const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Proxy => "proxy",
            Self::Control => "control",
        }
    }

    fn node(self, node: &str) -> Option<&str> {
        (self != Self::Control).then_some(node)
    }

    const fn daemon(self, node: &str) -> Daemon<'_> {
        match self {
            Self::Agent => Daemon::Agent(node),
            Self::Proxy => Daemon::Proxy(node),
            Self::Control => Daemon::Control,
        }
    }

    fn kill(self, sandbox: &Sandbox, node: &str) -> anyhow::Result<()> {
        sandbox.kill(self.name(), self.node(node), true)
    }

    fn start(self, sandbox: &Sandbox, node: &str) -> anyhow::Result<()> {
        sandbox.start(self.name(), self.node(node))
    }
}

// === impl Crash ===

impl Crash {
    fn all() -> impl Iterator<Item = Self> {
        let pairs = Part::ALL.into_iter().flat_map(|first| {
            let others = Part::ALL.into_iter().filter(move |other| *other != first);
            others.map(move |second| (first, second))
        });
        let backs = [Back::AtOnce, Back::FirstFirst, Back::SecondFirst];
        pairs.flat_map(move |(first, second)| {
            NODES.into_iter().flat_map(move |node| {
                backs.into_iter().map(move |back| Self {
                    node,
                    first,
                    second,
                    back,
                })
            })
        })
    }

    fn play(self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let wires = NODES.map(|node| Capture::only(&sandbox.node(node), SECRET.as_bytes()));
        let load = load(sandbox)?;
        under_load(sandbox)?;
        let played = self.kill_and_start(sandbox);
        let recovered = self.recovered(sandbox);
        let report: Report = load.finish(LONG)?.json()?;
        played?;
        recovered?;
        self.judge(&report)?;
        for wire in wires {
            let seen = wire?.stop()?.count(SECRET.as_bytes());
            ensure!(seen == 0, "{seen} packets in plaintext");
        }
        serves(sandbox, "20")
    }

    fn kill_and_start(self, sandbox: &Sandbox) -> anyhow::Result<()> {
        self.first.kill(sandbox, self.node)?;
        self.second.kill(sandbox, self.node)?;
        let (early, late) = match self.back {
            Back::AtOnce | Back::FirstFirst => (self.first, self.second),
            Back::SecondFirst => (self.second, self.first),
        };
        early.start(sandbox, self.node)?;
        let meanwhile = match self.back {
            Back::AtOnce => Ok(()),
            Back::FirstFirst | Back::SecondFirst => self.meanwhile(sandbox, early, late),
        };
        late.start(sandbox, self.node)?;
        meanwhile.with_context(|| format!("{} is back, {} is not", early.name(), late.name()))
    }

    fn meanwhile(self, sandbox: &Sandbox, up: Part, down: Part) -> anyhow::Result<()> {
        match (up, down) {
            (Part::Agent, Part::Control) | (Part::Control, Part::Agent) => serves(sandbox, "10"),
            (Part::Proxy, Part::Control) => {
                sandbox.ready(Daemon::Proxy(self.node))?;
                serves(sandbox, "10")
            }
            (Part::Agent, Part::Proxy) => {
                sandbox.ready(Daemon::Agent(self.node))?;
                wait_for("connections to wait", SOON, || {
                    let waiting = waiting(sandbox, self.pod())?;
                    ensure!(waiting > 0, "none waits");
                    Ok(())
                })
            }
            (Part::Proxy, Part::Agent) => {
                let at = sandbox.at("server", 7000)?;
                let flags = ["--patience", "1"];
                sandbox.connect("client", &at, &flags)?.refused()?;
                unmeshed_is_refused(sandbox)
            }
            _ => unmeshed_is_refused(sandbox),
        }
    }

    fn pod(self) -> &'static str {
        if self.node == "n1" {
            "client"
        } else {
            "server"
        }
    }

    fn recovered(self, sandbox: &Sandbox) -> anyhow::Result<()> {
        for part in [self.first, self.second] {
            sandbox.ready(part.daemon(self.node))?;
        }
        for node in NODES {
            for link in ["agent", "control"] {
                let name = format!("culvert_proxy_{link}_connected");
                wait_for(&format!("{name} of {node}"), SOON, || {
                    let connected = sandbox.metric(Daemon::Proxy(node), &name, &[])?;
                    ensure!(connected == 1.0, "it is {connected}");
                    Ok::<_, anyhow::Error>(())
                })?;
            }
            let enrolled = [("state", "enrolled")];
            let pods = sandbox.metric(Daemon::Agent(node), "culvert_agent_pods", &enrolled)?;
            ensure!(pods == 1.0, "{pods} pods are enrolled on {node}");
        }
        under_load(sandbox)
    }

    /// Only what was in flight may fail, and what is dialled while nobody holds the listeners of
    /// the server.
    fn judge(self, report: &Report) -> anyhow::Result<()> {
        let (tried, failures) = (report.attempted, &report.failures);
        let slowest = report.exchange.max_us.max(report.connect.max_us) / 1000;
        eprintln!("    {tried} connections, failures {failures:?}, the slowest took {slowest} ms");
        let cut = failures.keys().find(|failure| failure.ends_with("eof"));
        ensure!(cut.is_none(), "a killed proxy looks like an orderly end");
        let failed = report.attempted - report.succeeded;
        let killed = [self.first, self.second];
        let has = |part| killed.contains(&part);
        if !has(Part::Proxy) {
            ensure!(failed == 0, "{failed} failed: {failures:?}");
        } else if !(has(Part::Agent) && self.node == "n2") {
            ensure!(failed <= 2 * CLIENTS, "{failed} failed: {failures:?}");
        }
        Ok(())
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = (self.first.name(), self.second.name());
        let back = match self.back {
            Back::AtOnce => "both at once",
            Back::FirstFirst => first,
            Back::SecondFirst => second,
        };
        write!(
            f,
            "{first} and {second} of {} are killed, first back: {back}",
            self.node
        )
    }
}

fn load(sandbox: &Sandbox) -> anyhow::Result<Running> {
    let (at, clients) = (sandbox.at("server", 7000)?, CLIENTS.to_string());
    let flags = ["--count", "0", "--until-eof", "--patience", "30", "--send"];
    let command = ["connect", &at, "--concurrent", &clients];
    sandbox.spawn_app("client", &[&command[..], &flags, &[SECRET]].concat())
}

/// Waits until fifty connections have been opened meanwhile.
fn under_load(sandbox: &Sandbox) -> anyhow::Result<()> {
    let labels = [("pod", "server"), ("direction", "inbound")];
    let mut before = f64::MAX;
    wait_for("load", SOON, || {
        let now = sandbox.metric(Daemon::Proxy("n2"), "tcp_open_total", &labels)?;
        // A restarted proxy counts from 0.
        before = before.min(now);
        ensure!(now >= before + 50.0, "{} connections", now - before);
        Ok::<_, anyhow::Error>(())
    })
}

/// Connections that wait to be accepted in a pod.
fn waiting(sandbox: &Sandbox, pod: &str) -> anyhow::Result<u64> {
    let shown = sandbox.exec(pod, &["ss", "-Htln"])?.ok()?.stdout;
    let of_mesh = shown.lines().filter(|line| line.contains("127.0.0.1:"));
    let queued = of_mesh.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(queued.sum())
}

/// Both ways, and nobody who proves no identity.
fn serves(sandbox: &Sandbox, count: &str) -> anyhow::Result<()> {
    for (from, to) in [("client", "server"), ("server", "client")] {
        let at = sandbox.at(to, 7000)?;
        let flags = ["--count", count, "--patience", "20"];
        let report = sandbox.connect(from, &at, &flags)?;
        report.all().with_context(|| format!("{from} → {to}"))?;
    }
    unmeshed_is_refused(sandbox)
}

fn unmeshed_is_refused(sandbox: &Sandbox) -> anyhow::Result<()> {
    for to in ["server", "client"] {
        let at = sandbox.at(to, 7000)?;
        let report = sandbox.connect("plain", &at, &["--patience", "1"])?;
        report.refused().with_context(|| format!("plain → {to}"))?;
    }
    Ok(())
}

/// What must not become more.
#[derive(Debug)]
struct Held {
    pins: [BTreeSet<String>; 2],
    fds: [[f64; 2]; 2],
}

// === impl Held ===

impl Held {
    fn of(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let fds = |node| {
            let of = |daemon| sandbox.metric(daemon, "process_open_fds", &[]);
            Ok::<_, anyhow::Error>([of(Daemon::Agent(node))?, of(Daemon::Proxy(node))?])
        };
        Ok(Self {
            pins: [pins(sandbox, "n1")?, pins(sandbox, "n2")?],
            fds: [fds("n1")?, fds("n2")?],
        })
    }

    /// The pools of sockets differ by a few.
    fn is_kept(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        wait_for("what is open to be as at first", LONG, || {
            let now = Self::of(sandbox)?;
            ensure!(now.pins == self.pins, "pinned: {now:?}, first {self:?}");
            let both = now.fds.iter().flatten().zip(self.fds.iter().flatten());
            let more = both.map(|(now, first)| now - first).fold(0.0, f64::max);
            ensure!(more <= 64.0, "open: {now:?}, first {self:?}");
            Ok::<_, anyhow::Error>(())
        })
    }
}

/// The names of what is pinned of pods.
fn pins(sandbox: &Sandbox, node: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![sandbox.node_root(node).join("bpf")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            found.insert(path.display().to_string());
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    Ok(found)
}

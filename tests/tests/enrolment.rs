// SPDX-License-Identifier: Apache-2.0
//! Pods that join and leave the mesh while they run: no connection breaks, no byte is lost, and
//! what must come before what is seen to.

#[path = "enrolment/order.rs"]
mod order;
#[path = "enrolment/trouble.rs"]
mod trouble;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{hold::Held, report::Report, stream::Streamed},
    manifests::{NAMESPACE, Pod, service},
    process::Running,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);
/// The service over the pod that changes.
const MOVER: &str = "movers";
/// The pods that stay as they are, on both nodes.
const PEERS: [&str; 4] = ["meshed-far", "meshed-near", "plain-far", "plain-near"];

#[test]
fn enrolment() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    let own = [
        (
            "open connections outlive joining and leaving",
            outlive as Step,
        ),
        ("open connections outlive joining as strict", |s| {
            joined_as(s, &mover(s).strict())
        }),
    ];
    for (name, step) in own.into_iter().chain(order::STEPS).chain(trouble::STEPS) {
        suite.step(name, |sandbox| {
            leave(sandbox)?;
            step(sandbox)
        });
    }
    suite.finish()
}

/// A step begins with a pod that is in no mesh.
type Step = fn(&Sandbox) -> anyhow::Result<()>;

fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("enrolment")?;
    let app = plan.testapp().to_owned();
    let pod = |name: &str| {
        let node = if name.ends_with("-far") { "n1" } else { "n2" };
        let pod = Pod::serving(name, node, &app, &["7000=echo"]);
        match name.starts_with("meshed") {
            true => pod.meshed(),
            // Whatever their namespace says.
            false => pod.annotation("culvert.io/inject", "disabled"),
        }
    };
    let mut plan = plan
        .object(&service(MOVER, ("app", "mover"), &[7000]))?
        .object(&service("peers", ("app", "meshed-far"), &[7000]))?
        .pod(&Pod::serving("mover", "n2", &app, &["7000=echo"]))?;
    for name in PEERS {
        plan = plan.pod(&pod(name))?;
    }
    let sandbox = plan.up()?;
    for name in PEERS {
        sandbox.answers(name, "mover", 7000)?;
        sandbox.answers("mover", name, 7000)?;
    }
    Ok(sandbox)
}

/// The pod that changes, not meshed.
fn mover(sandbox: &Sandbox) -> Pod {
    let app = sandbox.testapp().to_owned();
    Pod::serving("mover", "n2", &app, &["7000=echo"])
}

// --- connections ---

/// Connections to and from the pod that changes: some carry bytes all the time, some are idle.
#[derive(Default)]
struct Open {
    streams: Vec<(String, Running)>,
    idle: Vec<(String, Running)>,
}

impl Open {
    /// Between the pod and all of its peers, both ways.
    fn all(sandbox: &Sandbox) -> anyhow::Result<Self> {
        let mut open = Self::default();
        let addrs = PEERS.map(|name| sandbox.at(name, 7000));
        let addrs = addrs.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        open.add(sandbox, "mover", &addrs)?;
        let mover = sandbox.at("mover", 7000)?;
        for name in PEERS {
            open.add(sandbox, name, std::slice::from_ref(&mover))?;
        }
        Ok(open)
    }

    /// From a pod to these, two of each kind.
    fn add(&mut self, sandbox: &Sandbox, from: &str, to: &[String]) -> anyhow::Result<()> {
        let mut command = vec!["stream", "--connections", "2"];
        command.extend(to.iter().map(String::as_str));
        let mut stream = sandbox.spawn_app(from, &command)?;
        let begun: Streamed = stream.next(SOON)?;
        ensure!(begun.broken.is_empty(), "{from}: {begun:?}");
        self.streams.push((from.to_owned(), stream));
        for to in to {
            let mut idle = sandbox.spawn_app(from, &["hold", to, "--connections", "2"])?;
            let held: Held = idle.next(SOON)?;
            ensure!(held.working == 2, "{from} → {to}: {held:?}");
            self.idle.push((format!("{from} → {to}"), idle));
        }
        Ok(())
    }

    /// Bytes came back on each since this was asked.
    fn flow(&mut self) -> anyhow::Result<()> {
        for (from, stream) in &mut self.streams {
            let before = asked(stream)?.least;
            wait_for(&format!("bytes of {from}"), SOON, || {
                let now = asked(stream)?;
                ensure!(now.broken.is_empty(), "{from}: {now:?}");
                ensure!(now.least > before, "nothing came back: {now:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Uses the idle ones too.
    fn work(&mut self) -> anyhow::Result<()> {
        self.flow()?;
        for (which, idle) in &mut self.idle {
            idle.say("once more")?;
            let held: Held = idle.next(SOON)?;
            ensure!(held.working == 2, "{which}: {held:?}");
        }
        Ok(())
    }

    /// Ends all: every byte came back.
    fn end(mut self) -> anyhow::Result<()> {
        self.work()?;
        for (from, stream) in self.streams {
            let output = stream.finish(LONG)?.ok()?;
            let last = output.stdout.lines().last().context("no report")?;
            let last: Streamed = serde_json::from_str(last)?;
            ensure!(last.broken.is_empty(), "{from}: {last:?}");
        }
        for (_, idle) in self.idle {
            idle.finish(SOON)?.ok()?;
        }
        Ok(())
    }
}

fn asked(stream: &mut Running) -> anyhow::Result<Streamed> {
    stream.say("how goes it")?;
    stream.next(SOON)
}

// --- what is seen of the pod that changes ---

/// How the proxy of a node dials the pod for one of the node's pods.
fn dialled(sandbox: &Sandbox, from: &str, tls: &str) -> anyhow::Result<()> {
    let node = if from.ends_with("-far") { "n1" } else { "n2" };
    let labels = [("direction", "outbound"), ("pod", from), ("tls", tls)];
    let at = sandbox.at("mover", 7000)?;
    let opened = || sandbox.metric(Daemon::Proxy(node), "tcp_open_total", &labels);
    let before = opened()?;
    let mut failed = Vec::new();
    let what = format!("{from} to dial the pod with tls={tls:?}");
    wait_for(&what, SOON, || {
        let report = sandbox.connect(from, &at, &[])?;
        failed.extend(report.failures.keys().cloned());
        let now = opened()?;
        ensure!(now > before, "{now} such connections; failures: {failed:?}");
        Ok(())
    })?;
    ensure!(
        failed.is_empty(),
        "connections failed meanwhile: {failed:?}"
    );
    Ok(())
}

/// Both nodes know that it is in the mesh.
fn is_meshed(sandbox: &Sandbox) -> anyhow::Result<()> {
    dialled(sandbox, "meshed-far", "true")?;
    dialled(sandbox, "meshed-near", "true")
}

/// Both nodes know that it is not, and nothing in it is left of the mesh.
fn is_plain(sandbox: &Sandbox) -> anyhow::Result<()> {
    dialled(sandbox, "meshed-far", "no_identity")?;
    dialled(sandbox, "meshed-near", "no_identity")?;
    state_is(sandbox, "enrolled", 1.0)
}

/// What the agent of the pod's node says; one of its pods is always enrolled.
fn state_is(sandbox: &Sandbox, state: &str, pods: f64) -> anyhow::Result<()> {
    wait_for(&format!("{pods} pods to be {state}"), SOON, || {
        let labels = [("state", state)];
        let now = sandbox.metric(Daemon::Agent("n2"), "culvert_agent_pods", &labels)?;
        ensure!(now == pods, "{now} are");
        Ok(())
    })
}

/// The rules for marked packets in the pod's namespace.
fn rules(sandbox: &Sandbox) -> anyhow::Result<usize> {
    let shown = sandbox.exec("mover", &["ip", "rule"])?.ok()?.stdout;
    Ok(shown.lines().filter(|rule| rule.contains("fwmark")).count())
}

fn rules_go(sandbox: &Sandbox) -> anyhow::Result<()> {
    wait_for("the rules to go", SOON, || {
        let left = rules(sandbox)?;
        ensure!(left == 0, "{left} rules are left");
        Ok(())
    })
}

/// Back to how the suite begins.
fn leave(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.apply(&mover(sandbox))?;
    is_plain(sandbox)?;
    rules_go(sandbox)
}

fn connects(sandbox: &Sandbox, from: &str) -> anyhow::Result<Report> {
    sandbox.connect(from, &sandbox.at("mover", 7000)?, &["--patience", "5"])
}

/// The namespace of the pods, with an annotation.
fn namespace(inject: Option<&str>) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "annotations": {}},
    });
    if let Some(inject) = inject {
        object["metadata"]["annotations"]["culvert.io/inject"] = inject.into();
    }
    object
}

// --- steps ---

/// Plaintext ones from before, and mesh ones from between.
fn outlive(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut before = Open::all(sandbox)?;
    sandbox.apply(&mover(sandbox).meshed())?;
    is_meshed(sandbox)?;
    before.work().context("plaintext, after joining")?;
    let mut between = Open::all(sandbox)?;
    let services = [format!("{}:7000", sandbox.service_ip("mover", "peers")?)];
    between.add(sandbox, "mover", &services)?;
    let service = format!("{}:7000", sandbox.service_ip("meshed-far", MOVER)?);
    for from in ["meshed-far", "meshed-near"] {
        between.add(sandbox, from, std::slice::from_ref(&service))?;
    }
    between.work()?;
    sandbox.apply(&mover(sandbox))?;
    is_plain(sandbox)?;
    before.work().context("plaintext, after leaving")?;
    between.work().context("of the mesh, after leaving")?;
    ensure!(rules(sandbox)? > 0, "the rules went before the connections");
    sandbox.apply(&mover(sandbox).meshed())?;
    is_meshed(sandbox)?;
    before.work().context("plaintext, after joining again")?;
    between.work().context("of the mesh, after joining again")?;
    leave_with(sandbox, before, between)
}

/// The rules stay until the last connection through the proxy ends.
fn leave_with(sandbox: &Sandbox, before: Open, mut between: Open) -> anyhow::Result<()> {
    sandbox.apply(&mover(sandbox))?;
    is_plain(sandbox)?;
    state_is(sandbox, "draining", 1.0)?;
    before.end()?;
    between.work()?;
    ensure!(rules(sandbox)? > 0, "the rules went before the connections");
    between.end()?;
    rules_go(sandbox)?;
    state_is(sandbox, "draining", 0.0)
}

fn joined_as(sandbox: &Sandbox, pod: &Pod) -> anyhow::Result<()> {
    let mut before = Open::all(sandbox)?;
    sandbox.apply(pod)?;
    is_meshed(sandbox)?;
    wait_for("it to be strict", SOON, || {
        connects(sandbox, "plain-far")?.refused().map(drop)
    })?;
    before.work().context("plaintext, after joining")?;
    for from in ["meshed-far", "meshed-near"] {
        connects(sandbox, from)?.all()?;
    }
    before.end()?;
    leave(sandbox)
}

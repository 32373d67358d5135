// SPDX-License-Identifier: Apache-2.0
//! What happens while a part is dead, and when pods join and leave the mesh with connections open.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{hold::Held, report::Report},
    manifests::Pod,
    process::Running,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(120);

#[test]
fn failures() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step("connections wait while the server's proxy is dead", |s| {
        outage(s, "n2")
    });
    suite.step("connections wait while the client's proxy is dead", |s| {
        outage(s, "n1")
    });
    suite.step(
        "a proxy killed under load costs what was in flight only",
        killed_under_load,
    );
    suite.step(
        "a proxy that is asked to end under load costs nothing",
        ended_under_load,
    );
    suite.step(
        "10,000 connections while both agents are dead",
        without_agents,
    );
    suite.step(
        "a pod that is added while the agent is dead waits for it",
        added_without_agent,
    );
    suite.step(
        "an agent that is killed and comes back changes nothing",
        agent_comes_back,
    );
    suite.step("without control the known is served", without_control);
    suite.step(
        "a proxy that restarts without control serves the known",
        proxy_without_control,
    );
    suite.step("a live pod is enrolled and un-enrolled", live_enrolment);
    suite.step(
        "joining and leaving under load costs nothing",
        enrolment_under_load,
    );
    suite.step(
        "a broken manifest changes nothing and is told",
        broken_manifest,
    );
    suite.step("a deleted pod is gone from the metrics", deleted_pod);
    suite.finish()
}

fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("failures")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo", "7001=whoami"]);
    let sandbox = plan
        .pod(&pod("client", "n1").meshed())?
        .pod(&pod("server", "n2").strict())?
        .pod(&pod("late", "n2"))?
        .pod(&pod("plain", "n1"))?
        .up()?;
    sandbox.answers("client", "server", 7000)?;
    Ok(sandbox)
}

fn server(sandbox: &Sandbox) -> anyhow::Result<String> {
    sandbox.at("server", 7000)
}

fn hold(sandbox: &Sandbox, from: &str, to: &str, count: &str) -> anyhow::Result<Running> {
    let mut hold = sandbox.spawn_app(
        from,
        &["hold", &sandbox.at(to, 7000)?, "--connections", count],
    )?;
    still_held(&mut hold, count)?;
    Ok(hold)
}

/// The first call reads what `hold` says when it begins.
fn still_held(hold: &mut Running, count: &str) -> anyhow::Result<()> {
    let held: Held = hold.next(SOON)?;
    ensure!(
        held.working.to_string() == count,
        "{held:?}, expected {count}"
    );
    Ok(())
}

fn use_held(hold: &mut Running, count: &str) -> anyhow::Result<()> {
    hold.say("once more")?;
    still_held(hold, count)
}

/// Connections that wait to be accepted in a pod.
fn waiting(sandbox: &Sandbox, pod: &str) -> anyhow::Result<u64> {
    let shown = sandbox.exec(pod, &["ss", "-Htln"])?.ok()?.stdout;
    let of_mesh = shown.lines().filter(|line| line.contains("127.0.0.1:"));
    let queued = of_mesh.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(queued.sum())
}

fn outage(sandbox: &Sandbox, node: &str) -> anyhow::Result<()> {
    let pod = if node == "n1" { "client" } else { "server" };
    sandbox.kill("proxy", Some(node), true)?;
    let command = [
        "connect",
        &server(sandbox)?,
        "--count",
        "20",
        "--concurrent",
        "20",
        "--patience",
        "30",
    ];
    let meanwhile = sandbox.spawn_app("client", &command)?;
    wait_for("20 connections to wait", SOON, || {
        let waiting = waiting(sandbox, pod)?;
        ensure!(waiting >= 20, "{waiting} wait");
        Ok(())
    })?;
    sandbox.start("proxy", Some(node))?;
    let report: Report = meanwhile.finish(LONG)?.json()?;
    report.all()?;
    eprintln!("    the slowest took {} ms", report.exchange.max_us / 1000);
    sandbox.ready(Daemon::Proxy(node))
}

/// The supervisor restarts the proxy; whoever connects meanwhile waits.
fn killed_under_load(sandbox: &Sandbox) -> anyhow::Result<()> {
    for node in ["n2", "n1"] {
        let report = replaced_under_load(sandbox, node, |s| s.kill("proxy", Some(node), false))?;
        let failed = report.attempted - report.succeeded;
        ensure!(
            failed <= 8,
            "{failed} failed, 8 can have been in flight: {:?}",
            report.failures
        );
    }
    Ok(())
}

/// A proxy that is asked to end lets what is open come to its end.
fn ended_under_load(sandbox: &Sandbox) -> anyhow::Result<()> {
    for node in ["n2", "n1"] {
        replaced_under_load(sandbox, node, |s| s.terminate("proxy", Some(node)))?.all()?;
    }
    Ok(())
}

/// What became of eight clients' connections while a proxy was replaced.
fn replaced_under_load(
    sandbox: &Sandbox,
    node: &str,
    end: impl Fn(&Sandbox) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    let at = server(sandbox)?;
    let flags = [
        "--count",
        "0",
        "--concurrent",
        "8",
        "--until-eof",
        "--patience",
        "30",
    ];
    let load = sandbox.spawn_app("client", &[&["connect", &at][..], &flags].concat())?;
    under_load(sandbox)?;
    let started = sandbox.pid(Daemon::Proxy(node))?;
    end(sandbox)?;
    sandbox.replaced(Daemon::Proxy(node), started)?;
    under_load(sandbox)?;
    let report: Report = load.finish(LONG)?.json()?;
    let slowest = report.exchange.max_us / 1000;
    let (tried, failures) = (report.attempted, &report.failures);
    eprintln!(
        "    {node}: {tried} connections, failures {failures:?}, the slowest took {slowest} ms"
    );
    Ok(report)
}

/// Waits until two hundred connections have been opened meanwhile.
fn under_load(sandbox: &Sandbox) -> anyhow::Result<()> {
    let labels = [("pod", "server"), ("direction", "inbound")];
    let opened = || sandbox.metric(Daemon::Proxy("n2"), "tcp_open_total", &labels);
    let mut before = opened()?;
    wait_for("load", SOON, || {
        let now = opened()?;
        // A restarted proxy counts from 0.
        before = before.min(now);
        ensure!(now >= before + 200.0, "{} connections", now - before);
        Ok::<_, anyhow::Error>(())
    })
}

fn without_agents(sandbox: &Sandbox) -> anyhow::Result<()> {
    for node in ["n1", "n2"] {
        sandbox.kill("agent", Some(node), true)?;
    }
    let served = sandbox.connect_for(LONG, "client", &server(sandbox)?, &["--count", "10000"]);
    let many = ["--count", "500", "--concurrent", "250"];
    let concurrent = sandbox.connect("client", &server(sandbox)?, &many);
    for node in ["n1", "n2"] {
        sandbox.start("agent", Some(node))?;
        sandbox.ready(Daemon::Agent(node))?;
    }
    served?.all()?;
    concurrent?
        .all()
        .context("500 connections, 250 at a time")?;
    sandbox
        .connect("client", &server(sandbox)?, &["--count", "100"])?
        .all()?;
    Ok(())
}

fn added_without_agent(sandbox: &Sandbox) -> anyhow::Result<()> {
    let app = sandbox.testapp().to_owned();
    sandbox.kill("agent", Some("n2"), true)?;
    sandbox.apply(&Pod::serving("added", "n2", &app, &["7000=echo"]).strict())?;
    let told = wait_for("ADD to be refused", SOON, || {
        let status = sandbox.sandbox("status", &["-o", "json"])?.stdout;
        ensure!(
            status.contains("culvert-agent is away"),
            "status says {status}"
        );
        Ok(())
    });
    let started = sandbox
        .exec("added", &["true"])
        .and_then(culvert_tests::process::Output::ok);
    sandbox.start("agent", Some("n2"))?;
    told?;
    ensure!(started.is_err(), "the pod runs without the mesh");
    sandbox.answers("client", "added", 7000)?;
    sandbox
        .connect("plain", &sandbox.at("added", 7000)?, &[])?
        .refused()?;
    Ok(())
}

fn agent_comes_back(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut held = hold(sandbox, "client", "server", "5")?;
    for (node, end) in [
        ("n1", "KILL"),
        ("n2", "KILL"),
        ("n1", "TERM"),
        ("n2", "TERM"),
    ] {
        let started = sandbox.pid(Daemon::Agent(node))?;
        match end {
            "KILL" => sandbox.kill("agent", Some(node), false)?,
            _ => sandbox.terminate("agent", Some(node))?,
        }
        sandbox.replaced(Daemon::Agent(node), started)?;
        use_held(&mut held, "5")?;
        sandbox
            .connect("client", &server(sandbox)?, &["--count", "200"])?
            .all()?;
    }
    held.finish(SOON)?.ok()?;
    sandbox
        .connect("plain", &server(sandbox)?, &[])?
        .refused()?;
    Ok(())
}

fn without_control(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut held = hold(sandbox, "client", "server", "5")?;
    sandbox.kill("control", None, true)?;
    let used = use_held(&mut held, "5");
    let served = sandbox.connect("client", &server(sandbox)?, &["--count", "500"]);
    sandbox.start("control", None)?;
    sandbox.ready(Daemon::Control)?;
    used?;
    served?.all()?;
    use_held(&mut held, "5")?;
    held.finish(SOON)?.ok()?;
    Ok(())
}

fn proxy_without_control(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.kill("control", None, true)?;
    let served = ["n1", "n2"].map(|node| {
        sandbox.kill("proxy", Some(node), false)?;
        sandbox.connect(
            "client",
            &server(sandbox)?,
            &["--count", "100", "--patience", "20"],
        )
    });
    sandbox.start("control", None)?;
    sandbox.ready(Daemon::Control)?;
    for (node, served) in ["n1", "n2"].into_iter().zip(served) {
        served?
            .all()
            .with_context(|| format!("after the proxy of {node} restarted"))?;
    }
    Ok(())
}

fn late_pod(sandbox: &Sandbox) -> Pod {
    let app = sandbox.testapp().to_owned();
    Pod::serving("late", "n2", &app, &["7000=echo", "7001=whoami"])
}

fn live_enrolment(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut before = [
        hold(sandbox, "client", "late", "5")?,
        hold(sandbox, "late", "plain", "5")?,
        hold(sandbox, "plain", "late", "5")?,
    ];
    sandbox.apply(&late_pod(sandbox).meshed())?;
    dialled(sandbox, "true", "spiffe://cluster.local/ns/default/sa/late")?;
    let mut during = [
        hold(sandbox, "client", "late", "5")?,
        hold(sandbox, "late", "plain", "5")?,
    ];
    for held in before.iter_mut().chain(&mut during) {
        use_held(held, "5").context("after enrolment")?;
    }
    sandbox.apply(&late_pod(sandbox))?;
    dialled(sandbox, "no_identity", "")?;
    for held in before.iter_mut().chain(&mut during) {
        use_held(held, "5").context("after un-enrolment")?;
    }
    for held in before.into_iter().chain(during) {
        held.finish(SOON)?.ok()?;
    }
    sandbox
        .connect("plain", &sandbox.at("late", 7000)?, &["--count", "20"])?
        .all()?;
    Ok(())
}

/// Connections from and to a pod that is enrolled and un-enrolled, three times.
fn enrolment_under_load(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = [
        "--count",
        "0",
        "--concurrent",
        "4",
        "--until-eof",
        "--patience",
        "30",
    ];
    let mut loads = Vec::new();
    for (from, to) in [
        ("late", "plain"),
        ("late", "client"),
        ("client", "late"),
        ("plain", "late"),
    ] {
        let at = sandbox.at(to, 7000)?;
        let load = sandbox.spawn_app(from, &[&["connect", &at][..], &flags].concat())?;
        loads.push((format!("{from} → {to}"), load));
    }
    for _ in 0..3 {
        sandbox.apply(&late_pod(sandbox).meshed())?;
        dialled(sandbox, "true", "spiffe://cluster.local/ns/default/sa/late")?;
        sandbox.apply(&late_pod(sandbox))?;
        dialled(sandbox, "no_identity", "")?;
    }
    let mut wrong = Vec::new();
    for (which, load) in loads {
        let report: Report = load.finish(LONG)?.json()?;
        let slowest = report.connect.max_us.max(report.exchange.max_us) / 1000;
        let told = format!(
            "{which}: {} of {} connections succeeded {:?}, the slowest took {slowest} ms",
            report.succeeded, report.attempted, report.failures
        );
        eprintln!("    {told}");
        if report.all().is_err() || slowest >= 1000 {
            wrong.push(told);
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// Waits until a new connection from `client` to `late` is opened so; none may fail meanwhile.
fn dialled(sandbox: &Sandbox, tls: &str, server_id: &str) -> anyhow::Result<()> {
    let labels = [
        ("direction", "outbound"),
        ("pod", "client"),
        ("tls", tls),
        ("server_id", server_id),
    ];
    let at = sandbox.at("late", 7000)?;
    let opened = || sandbox.metric(Daemon::Proxy("n1"), "tcp_open_total", &labels);
    let before = opened()?;
    let mut failed = Vec::new();
    wait_for(
        &format!("late to be dialled with tls={tls:?}"),
        SOON,
        || {
            let report = sandbox.connect("client", &at, &[])?;
            failed.extend(report.failures.keys().cloned());
            let now = opened()?;
            ensure!(now > before, "{now} such connections; failures: {failed:?}");
            Ok(())
        },
    )?;
    ensure!(
        failed.is_empty(),
        "connections failed meanwhile: {failed:?}"
    );
    Ok(())
}

fn broken_manifest(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut held = hold(sandbox, "client", "server", "2")?;
    let good = std::fs::read_to_string(sandbox.dir().join("pod-server.json"))?;
    let broken = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: [server\n";
    sandbox.apply_text("pod-server.json", broken)?;
    let told = wait_for(
        "the mistake to be told with its file and line",
        SOON,
        || {
            let status = sandbox.sandbox("status", &["-o", "json"])?.stdout;
            ensure!(status.contains("pod-server.json"), "status says {status}");
            Ok(())
        },
    );
    let served = sandbox.connect("client", &server(sandbox)?, &["--count", "50"]);
    sandbox.apply_text("pod-server.json", &good)?;
    told?;
    served?.all()?;
    wait_for("the mistake to be forgotten", SOON, || {
        let status = sandbox.sandbox("status", &["-o", "json"])?.stdout;
        ensure!(!status.contains("pod-server.json"), "status says {status}");
        Ok(())
    })?;
    use_held(&mut held, "2")?;
    held.finish(SOON)?.ok()?;
    sandbox.connect("client", &server(sandbox)?, &[])?.all()?;
    Ok(())
}

fn deleted_pod(sandbox: &Sandbox) -> anyhow::Result<()> {
    let netns = sandbox.pod("late");
    ensure!(
        netns.path().exists(),
        "there is no {}",
        netns.path().display()
    );
    sandbox.apply(&late_pod(sandbox).meshed())?;
    let labels = [("pod", "late"), ("direction", "inbound")];
    wait_for("late to be enrolled again", SOON, || {
        sandbox
            .connect("client", &sandbox.at("late", 7000)?, &[])?
            .all()?;
        let seen = sandbox.metric(Daemon::Proxy("n2"), "tcp_open_total", &labels)?;
        ensure!(seen > 0.0, "its proxy counts nothing");
        Ok(())
    })?;
    sandbox.delete_pod("late")?;
    wait_for("the pod to go", SOON, || {
        ensure!(!netns.path().exists(), "its namespace is still there");
        let scrape = sandbox.scrape(Daemon::Proxy("n2"))?;
        let left = scrape.matching("tcp_open_total", &labels).count();
        ensure!(left == 0, "{left} series are left");
        Ok(())
    })
}

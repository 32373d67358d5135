// SPDX-License-Identifier: Apache-2.0
//! What the mesh costs, beside the same pods unmeshed in the same run. Not a test: it prints.
//! `make bench`

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::report::Quantiles,
    binaries,
    manifests::Pod,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::Value;

const PODS: u8 = 99;
const LONG: Duration = Duration::from_secs(180);

fn main() -> anyhow::Result<()> {
    if !require::root()? || !require::program("iperf3")? {
        return Ok(());
    }
    let plan = Plan::new("measures")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo"]);
    let iperf = |name, node| Pod::new(name, node, &["iperf3", "-s"]);
    let sandbox = plan
        .pod(&pod("client", "n1").meshed())?
        .pod(&pod("server", "n2").meshed())?
        .pod(&iperf("iperf", "n2").meshed())?
        .pod(&pod("client-plain", "n1"))?
        .pod(&pod("server-plain", "n2"))?
        .pod(&iperf("iperf-plain", "n2"))?
        .up()?;
    sandbox.answers("client", "server", 7000)?;
    let mut suite = Suite::new(sandbox);
    suite.step("connect and request latency", latency);
    suite.step("throughput", throughput);
    suite.step("what the CNI plugin adds by itself", plugin);
    suite.step(
        "memory of a proxy and an agent and time of ADD with 110 pods",
        full_node,
    );
    suite.finish()
}

fn latency(sandbox: &Sandbox) -> anyhow::Result<()> {
    for concurrent in ["1", "32"] {
        let flags = ["--count", "3000", "--concurrent", concurrent];
        let [meshed, plain] = ["", "-plain"].map(|suffix| {
            let at = sandbox.at(&format!("server{suffix}"), 7000)?;
            sandbox.connect_for(LONG, &format!("client{suffix}"), &at, &flags)
        });
        let (meshed, plain) = (meshed?.all()?.clone(), plain?.all()?.clone());
        let show = |q: Quantiles| format!("p50 {} µs, p99 {} µs", q.p50_us, q.p99_us);
        let of = |report: &culvert_tests::app::report::Report| {
            (report.connect.p50_us + report.exchange.p50_us) as f64
        };
        eprintln!(
            "    {concurrent} at a time, meshed: connect {}, request {}",
            show(meshed.connect),
            show(meshed.exchange)
        );
        eprintln!(
            "    {concurrent} at a time, unmeshed: connect {}, request {}",
            show(plain.connect),
            show(plain.exchange)
        );
        eprintln!(
            "    connect+request p50 ratio {:.2}",
            of(&meshed) / of(&plain)
        );
    }
    Ok(())
}

fn throughput(sandbox: &Sandbox) -> anyhow::Result<()> {
    for flags in [&["-P", "1"][..], &["-P", "1", "-R"], &["-P", "4"]] {
        let [meshed, plain] = ["", "-plain"].map(|suffix| {
            let ip = sandbox.ip(&format!("iperf{suffix}"))?.to_string();
            let command = [&["iperf3", "-c", &ip, "-t", "5", "-J"][..], flags].concat();
            let report: Value = sandbox.exec(&format!("client{suffix}"), &command)?.json()?;
            let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
            Ok::<_, anyhow::Error>(rate.context("no rate")? / 1e9)
        });
        let (meshed, plain) = (meshed?, plain?);
        eprintln!(
            "    iperf3 {flags:?}: {meshed:.2} of {plain:.2} Gbit/s, ratio {:.2}",
            meshed / plain
        );
    }
    Ok(())
}

/// STATUS, which starts the plugin and asks the agent, who has nothing to do for it.
fn plugin(sandbox: &Sandbox) -> anyhow::Result<()> {
    let conflist = sandbox
        .node_root("n1")
        .join("cni/net.d/10-culvert.conflist");
    let conflist: Value = serde_json::from_slice(&fs::read(conflist)?)?;
    let plugins = conflist["plugins"].as_array().context("no plugins")?;
    let ours = plugins
        .iter()
        .find(|plugin| plugin["type"] == "culvert-cni");
    let mut config = ours.context("culvert-cni is not in the conflist")?.clone();
    config["cniVersion"] = "1.1.0".into();
    config["name"] = conflist["name"].clone();
    let binary = binaries::product("culvert-cni")?;
    let config = config.to_string();
    let times = (0..100).map(|_| one_status(&binary, config.as_bytes()));
    let times: Vec<_> = times.collect::<anyhow::Result<_>>()?;
    eprintln!("    culvert-cni STATUS: {:?}", Quantiles::from(times));
    Ok(())
}

fn one_status(binary: &Path, config: &[u8]) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let mut status = Command::new(binary);
    status.env_clear().env("CNI_COMMAND", "STATUS");
    let mut child = status.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(config)?;
    ensure!(child.wait()?.success(), "STATUS failed");
    Ok(begin.elapsed())
}

fn full_node(sandbox: &Sandbox) -> anyhow::Result<()> {
    let node = "n1";
    memory(sandbox, node, "with 1 enrolled pod")?;
    let before = adds(sandbox, node)?;
    for nth in 0..10 {
        add(sandbox, node, &format!("single-{nth}"))?;
        wait_until_added(sandbox, node, before.0 + f64::from(nth) + 1.0)?;
    }
    told(sandbox, node, before, "one after the other")?;
    let before = adds(sandbox, node)?;
    for nth in 0..PODS {
        add(sandbox, node, &format!("many-{nth}"))?;
    }
    wait_until_added(sandbox, node, before.0 + f64::from(PODS))?;
    told(sandbox, node, before, "all at once")?;
    memory(sandbox, node, "with 110 enrolled pods")
}

fn add(sandbox: &Sandbox, node: &str, name: &str) -> anyhow::Result<()> {
    sandbox.apply(&Pod::new(name, node, &["sleep", "infinity"]).meshed())
}

/// How many ADDs the agent has carried out, and how many seconds they took.
fn adds(sandbox: &Sandbox, node: &str) -> anyhow::Result<(f64, f64)> {
    let scrape = sandbox.scrape(Daemon::Agent(node))?;
    let sum = |what: &str| scrape.sum(&format!("culvert_agent_cni_add_seconds_{what}"), &[]);
    Ok((sum("count"), sum("sum")))
}

fn wait_until_added(sandbox: &Sandbox, node: &str, count: f64) -> anyhow::Result<()> {
    wait_for(&format!("{count} ADDs"), LONG, || {
        let now = adds(sandbox, node)?.0;
        ensure!(now >= count, "{now}");
        Ok(())
    })
}

fn told(sandbox: &Sandbox, node: &str, before: (f64, f64), how: &str) -> anyhow::Result<()> {
    let now = adds(sandbox, node)?;
    let (count, millis) = (now.0 - before.0, 1000.0 * (now.1 - before.1));
    eprintln!(
        "    the agent's part of {count} ADDs {how}: {:.1} ms on average",
        millis / count
    );
    Ok(())
}

fn memory(sandbox: &Sandbox, node: &str, when: &str) -> anyhow::Result<()> {
    for (name, daemon) in [
        ("proxy", Daemon::Proxy(node)),
        ("agent", Daemon::Agent(node)),
    ] {
        let bytes = sandbox.metric(daemon, "process_resident_memory_bytes", &[])?;
        let mib = bytes / f64::from(1 << 20);
        eprintln!("    the {name} of {node} has {mib:.1} MiB {when}");
    }
    let load = fs::read_to_string("/proc/loadavg")?;
    eprintln!("    load of the machine: {}", load.trim());
    Ok(())
}

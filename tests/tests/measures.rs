// SPDX-License-Identifier: Apache-2.0
//! What the mesh costs, beside the same pods unmeshed in the same run. Not a test: it prints.
//! `cargo test -p culvert-tests --test measures -- --ignored --nocapture`

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::report::Quantiles,
    manifests::Pod,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::Value;

const PODS: usize = 100;
const LONG: Duration = Duration::from_secs(180);

#[test]
#[ignore = "prints measurements, takes minutes"]
fn measures() -> anyhow::Result<()> {
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
    sandbox.answers("client", &sandbox.at("server", 7000)?)?;
    let mut suite = Suite::new(sandbox);
    suite.step("connect and request latency", latency);
    suite.step("throughput", throughput);
    suite.step(
        "memory of a proxy and time of ADD with 100 pods",
        hundred_pods,
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

fn hundred_pods(sandbox: &Sandbox) -> anyhow::Result<()> {
    let node = "n1";
    memory(sandbox, node, "with 1 enrolled pod")?;
    for nth in 0..PODS {
        sandbox.apply(&Pod::new(&format!("many-{nth}"), node, &["sleep", "infinity"]).meshed())?;
    }
    let enrolled = "culvert_agent_cni_add_seconds_count";
    let pods = || sandbox.metric(Daemon::Agent(node), enrolled, &[]);
    wait_for("100 pods", LONG, || {
        let pods = pods()?;
        ensure!(pods >= PODS as f64, "{pods} ADDs");
        Ok::<_, anyhow::Error>(())
    })?;
    memory(sandbox, node, "with 101 enrolled pods")?;
    let sum = sandbox.metric(
        Daemon::Agent(node),
        "culvert_agent_cni_add_seconds_sum",
        &[],
    )?;
    eprintln!(
        "    the agent's part of ADD took {:.1} ms on average",
        1000.0 * sum / pods()?
    );
    Ok(())
}

fn memory(sandbox: &Sandbox, node: &str, when: &str) -> anyhow::Result<()> {
    let bytes = sandbox.metric(Daemon::Proxy(node), "process_resident_memory_bytes", &[])?;
    eprintln!(
        "    the proxy of {node} has {:.1} MiB {when}",
        bytes / f64::from(1 << 20)
    );
    let load = fs::read_to_string("/proc/loadavg")?;
    eprintln!("    load of the machine: {}", load.trim());
    Ok(())
}

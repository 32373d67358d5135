// SPDX-License-Identifier: Apache-2.0
//! Requests are balanced one by one over the endpoints that are ready.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::requests::Requested,
    manifests::{Pod, service},
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

/// A peak of a tenth of a second is a thousandth after 46 seconds.
const FORGOTTEN: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(15);
const PORT: u16 = 7800;
const EQUALS: [&str; 3] = ["a", "b", "c"];

#[test]
fn balance() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step(
        "the requests of one connection reach all equals",
        one_connection,
    );
    suite.step("a slow endpoint gets few", slow);
    suite.step(
        "one that refuses is passed by, and no request fails",
        refusing,
    );
    suite.step("endpoints come and go, and no request fails", come_and_go);
    suite.step(
        "with no endpoint: 504 after three seconds, then at once",
        fail_fast,
    );
    suite.step("with an endpoint again all is well", recovery);
    suite.step("a hundred wait, the rest is shed", shed);
    suite.finish()
}

/// `client` on the first node; `a` and `b` on the second, `c` on the first, all alike; `late`, which
/// answers after 50 ms; `deaf`, which does not listen where the services say.
fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("balance")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node, listen: &str| {
        let pod = Pod::serving(name, node, &app, &[listen]).meshed();
        pod.label("all", "yes")
    };
    plan.pod(&Pod::new("client", "n1", &["sleep", "infinity"]).meshed())?
        .pod(
            &pod("a", "n2", "7800=http")
                .label("set", "equal")
                .label("slow", "yes")
                .label("deaf", "yes")
                .label("first", "yes"),
        )?
        .pod(
            &pod("b", "n2", "7800=http")
                .label("set", "equal")
                .label("slow", "yes")
                .label("deaf", "yes")
                .label("second", "yes")
                .label("first", "yes"),
        )?
        .pod(
            &pod("c", "n1", "7800=http")
                .label("set", "equal")
                .label("second", "yes"),
        )?
        .pod(&pod("late", "n2", "7800=http-late").label("slow", "yes"))?
        .pod(&pod("deaf", "n2", "7801=http").label("deaf", "yes"))?
        .object(&service("equals", ("set", "equal"), &[PORT]))?
        .object(&service("with-slow", ("slow", "yes"), &[PORT]))?
        .object(&service("with-deaf", ("deaf", "yes"), &[PORT]))?
        .object(&service("moving", ("first", "yes"), &[PORT]))?
        .object(&service("nobody", ("nobody", "yes"), &[PORT]))?
        .object(&service("crowded", ("nobody", "yes"), &[PORT]))?
        .up()
}

fn requests(sandbox: &Sandbox, service: &str, flags: &[&str]) -> anyhow::Result<Requested> {
    let app = sandbox.testapp().to_str().context("the path is no UTF-8")?;
    let at = at(sandbox, service)?;
    let command = [&[app, "requests", &at], flags].concat();
    sandbox.exec("client", &command)?.json()
}

fn at(sandbox: &Sandbox, service: &str) -> anyhow::Result<String> {
    Ok(format!("{}:{PORT}", sandbox.service_ip("client", service)?))
}

/// The requests that the client's node counts as answered, by pod.
fn answered(sandbox: &Sandbox, service: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let of = [
        ("direction", "outbound"),
        ("dst_service", service),
        ("classification", "success"),
    ];
    let scrape = sandbox.scrape(Daemon::Proxy("n1"))?;
    let mut by_pod = BTreeMap::new();
    for sample in scrape.matching("response_total", &of) {
        let pod = sample.labels.get("dst_pod").cloned().unwrap_or_default();
        *by_pod.entry(pod).or_default() += sample.value;
    }
    Ok(by_pod)
}

/// What the balancer's metrics say of a service.
fn balancer(
    sandbox: &Sandbox,
    service: &str,
    name: &str,
    labels: &[(&str, &str)],
) -> anyhow::Result<f64> {
    let port = PORT.to_string();
    let of = [
        ("backend_group", "core"),
        ("backend_kind", "Service"),
        ("backend_namespace", "default"),
        ("backend_name", service),
        ("backend_port", port.as_str()),
        ("parent_name", service),
    ];
    let labels = [&of, labels].concat();
    let name = format!("outbound_http_balancer_{name}");
    sandbox.metric(Daemon::Proxy("n1"), &name, &labels)
}

fn one_connection(sandbox: &Sandbox) -> anyhow::Result<()> {
    wait_for("all three to be ready", SOON, || {
        requests(sandbox, "equals", &[])?.all()?;
        let labels = [("endpoint_state", "ready")];
        let ready = balancer(sandbox, "equals", "endpoints", &labels)?;
        ensure!(ready == 3.0, "{ready} endpoints are ready");
        anyhow::Ok(())
    })?;
    // One that was slow to answer its first request gets little until that is forgotten.
    let mut failed = Ok(());
    wait_for("each to get its part", FORGOTTEN, || {
        let requested = requests(sandbox, "equals", &["--count", "600", "--rate", "200"])?;
        failed = requested.all().map(|_| ());
        for pod in EQUALS {
            let part = requested.part(&sandbox.ip(pod)?.to_string());
            let enough = part > 0.02 || failed.is_err();
            ensure!(enough, "{pod} got {part} of {:?}", requested.by);
        }
        anyhow::Ok(())
    })?;
    failed?;
    let answered = answered(sandbox, "equals")?;
    let all: f64 = answered.values().sum();
    ensure!(all >= 600.0 && answered.len() == 3, "{answered:?}");
    let ready = balancer(
        sandbox,
        "equals",
        "endpoints",
        &[("endpoint_state", "ready")],
    )?;
    ensure!(ready == 3.0, "{ready} endpoints are ready");
    let queued = balancer(sandbox, "equals", "queue_requests_total", &[])?;
    ensure!(queued >= 600.0, "{queued} requests were balanced");
    Ok(())
}

fn slow(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = ["--count", "3000", "--connections", "4", "--rate", "500"];
    let requested = requests(sandbox, "with-slow", &flags)?;
    requested.all()?;
    let part = requested.part(&sandbox.ip("late")?.to_string());
    ensure!(part < 0.05, "the slow one got {part} of {:?}", requested.by);
    let answered = answered(sandbox, "with-slow")?;
    eprintln!("    {answered:?}");
    let late = answered.get("late").copied().unwrap_or_default();
    let all: f64 = answered.values().sum();
    ensure!(late < all * 0.05, "{answered:?}");
    Ok(())
}

fn refusing(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = ["--count", "2000", "--connections", "4", "--rate", "400"];
    requests(sandbox, "with-deaf", &flags)?.all()?;
    let answered = answered(sandbox, "with-deaf")?;
    eprintln!("    {answered:?}");
    ensure!(!answered.contains_key("deaf"), "{answered:?}");
    for (state, expected) in [("pending", 1.0), ("ready", 2.0)] {
        let labels = [("endpoint_state", state)];
        let endpoints = balancer(sandbox, "with-deaf", "endpoints", &labels)?;
        ensure!(endpoints == expected, "{endpoints} endpoints are {state}");
    }
    Ok(())
}

fn come_and_go(sandbox: &Sandbox) -> anyhow::Result<()> {
    let at = at(sandbox, "moving")?;
    let flags = ["--until-eof", "--connections", "8", "--rate", "200"];
    let load = sandbox.spawn_app("client", &[&["requests", at.as_str()], &flags[..]].concat())?;
    for selector in ["second", "first", "all", "second"] {
        sandbox.apply_object(&service("moving", (selector, "yes"), &[PORT]))?;
        let (came, went) = match selector {
            "second" => ("c", "a"),
            _ => ("a", "c"),
        };
        moved(sandbox, came, (selector != "all").then_some(went))?;
    }
    let requested: Requested = load.finish(SOON)?.json()?;
    requested.all()?;
    eprintln!("    {} requests: {:?}", requested.sent, requested.by);
    Ok(())
}

/// Waits until `came` answers, and for a while in which `went` does not.
fn moved(sandbox: &Sandbox, came: &str, went: Option<&str>) -> anyhow::Result<()> {
    let mut before = answered(sandbox, "moving")?;
    let of = |answered: &BTreeMap<String, f64>, pod: &str| {
        answered.get(pod).copied().unwrap_or_default()
    };
    wait_for(
        &format!("{came} to answer instead of {went:?}"),
        SOON,
        || {
            let now = answered(sandbox, "moving")?;
            let last = std::mem::replace(&mut before, now.clone());
            ensure!(of(&now, came) > of(&last, came), "{came} did not: {now:?}");
            if let Some(went) = went {
                ensure!(
                    of(&now, went) == of(&last, went),
                    "{went} does still: {now:?}"
                );
            }
            Ok(())
        },
    )
}

fn fail_fast(sandbox: &Sandbox) -> anyhow::Result<()> {
    let first = requests(sandbox, "nobody", &[])?;
    failed_fast(&first)?;
    let three = 2_900_000..4_500_000;
    ensure!(three.contains(&first.latency.p50_us), "{first:?}");
    let next = requests(sandbox, "nobody", &["--count", "20"])?;
    failed_fast(&next)?;
    ensure!(next.latency.max_us < 1_000_000, "{next:?}");
    let shut = balancer(sandbox, "nobody", "queue_gate_shut_total", &[])?;
    ensure!(shut == 1.0, "the gate shut {shut} times");
    let errors = [("error", "failfast"), ("pod", "client")];
    sandbox.metric_reaches(
        Daemon::Proxy("n1"),
        "outbound_http_errors_total",
        &errors,
        21.0,
    )?;
    Ok(())
}

fn failed_fast(requested: &Requested) -> anyhow::Result<()> {
    let named = |failure: &String| failure.starts_with("504: ") && failure.contains("fail");
    let all = requested.by.is_empty() && requested.failures.keys().all(named);
    ensure!(all, "{requested:?}");
    Ok(())
}

fn recovery(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.apply_object(&service("nobody", ("set", "equal"), &[PORT]))?;
    wait_for("an answer", SOON, || {
        requests(sandbox, "nobody", &[])?.all()?;
        anyhow::Ok(())
    })?;
    requests(sandbox, "nobody", &["--count", "100"])?.all()?;
    for (what, expected) in [("open", 2.0), ("shut", 1.0)] {
        let times = balancer(sandbox, "nobody", &format!("queue_gate_{what}_total"), &[])?;
        ensure!(times == expected, "the gate {what} {times} times");
    }
    Ok(())
}

fn shed(sandbox: &Sandbox) -> anyhow::Result<()> {
    let flags = ["--count", "150", "--connections", "150"];
    let requested = requests(sandbox, "crowded", &flags)?;
    let with = |status: &str| -> u64 {
        let failures = requested.failures.iter();
        let with = failures.filter(|(failure, _)| failure.starts_with(status));
        with.map(|(_, count)| count).sum()
    };
    let (shed, waited) = (with("503: "), with("504: "));
    ensure!((shed, waited) == (50, 100), "{:?}", requested.failures);
    Ok(())
}

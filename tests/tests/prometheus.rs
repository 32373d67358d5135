// SPDX-License-Identifier: Apache-2.0
//! Debian's Prometheus scrapes both proxies while a known load runs, and is asked what Linkerd's stat
//! asks it: success rate, requests per second and latencies, inbound and outbound, by workload.

use std::time::Duration;

use anyhow::ensure;
use culvert_tests::{
    manifests::{NAMESPACE, service},
    programs::source,
    require,
    sandbox::{Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "prometheus/server.rs"]
mod server;

use self::server::Prometheus;

const PROGRAMS: [&str; 3] = ["curl", "prometheus", "python3"];
const PORT: u16 = 9800;
const SOON: Duration = Duration::from_secs(20);

/// Whom the clients ask, and as whom.
const CLIENT_ID: &str = "spiffe://cluster.local/ns/default/sa/web";
const SERVER_ID: &str = "spiffe://cluster.local/ns/default/sa/api";

/// How many requests of which status take how many milliseconds. 404 is the client's fault, and a
/// success for Linkerd. Each time is in a bucket whose end is far: a busy machine may add 80 ms.
const LOAD: [(u32, u16, u32); 5] = [
    (240, 200, 110),
    (60, 404, 110),
    (146, 200, 210),
    (14, 500, 210),
    (40, 200, 520),
];
const REQUESTS: f64 = 500.0;
const FAILURES: f64 = 14.0;

/// Linear inside of the buckets 100–200 with 300, 200–300 with 160 and 500–1000 ms with 40 of 500.
const P50: f64 = 100.0 + 100.0 * 250.0 / 300.0;
const P95: f64 = 500.0 + 500.0 * 15.0 / 40.0;
const P99: f64 = 500.0 + 500.0 * 35.0 / 40.0;

/// What Linkerd calls the time window, in seconds. The load fits into it.
const WINDOW: u32 = 20;

/// What `increase` and `rate` may be too much: they extrapolate from the samples in the window to its
/// ends, and of those there is one each second, so that up to one second of 20 is made up, and one more
/// where a busy machine was late.
const EXTRAPOLATED: f64 = 0.11;

/// What a success rate may be off: each target's increase is extrapolated by itself.
const SCRAPED_APART: f64 = 0.003;

/// What a quantile may be off: a request that the machine held up is in the next bucket.
const HELD_UP: f64 = 0.1;

/// The two sides, and what selects the load on each.
const SIDES: [(&str, &str); 2] = [
    (
        "inbound",
        r#"direction="inbound",namespace="default",deployment="api",tls="true",client_id="spiffe://cluster.local/ns/default/sa/web""#,
    ),
    (
        "outbound",
        r#"direction="outbound",namespace="default",deployment="web",tls="true",dst_namespace="default",dst_deployment="api",dst_service="api",server_id="spiffe://cluster.local/ns/default/sa/api""#,
    ),
];

#[test]
fn prometheus() -> anyhow::Result<()> {
    if !require::programs(&PROGRAMS)? {
        return Ok(());
    }
    let files = TempDir::with_prefix("culvert-prometheus-")?;
    let sandbox = Plan::new("prometheus")?
        .object(&account("web"))?
        .object(&account("api"))?
        .object(&service("api", ("app", "api"), &[PORT]))?
        .object(&deployment(
            "api",
            2,
            &["python3", &source("known.py"), "serve", &PORT.to_string()],
        ))?
        .object(&deployment("web", 1, &["sleep", "infinity"]))?
        .up()?;
    let prometheus = Prometheus::start(&sandbox, files.path())?;
    let mut suite = Suite::new(sandbox);
    suite.step(
        "both proxies are scraped, and nothing is wrong with what they say",
        |_| prometheus.targets_are_up(2),
    );
    suite.step("a load of 500 requests", |sandbox| {
        load(sandbox, &prometheus)
    });
    suite.step("success rates", |_| success_rates(&prometheus));
    suite.step("requests per second", |_| rates(&prometheus));
    suite.step("latencies p50, p95, p99", |_| latencies(&prometheus));
    suite.step("both replicas, and who is at either end", |_| {
        ends(&prometheus)
    });
    suite.step("`culvert sandbox stat` says the same", stat);
    suite.step("the series of pods that are gone vanish", |sandbox| {
        gone(sandbox, &prometheus)
    });
    drop(prometheus);
    suite.finish()
}

fn account(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": NAMESPACE},
    })
}

fn deployment(name: &str, replicas: u8, command: &[&str]) -> Value {
    let probe = match name {
        "api" => json!({"tcpSocket": {"port": PORT}, "periodSeconds": 1}),
        _ => Value::Null,
    };
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": {"culvert.io/inject": "enabled"}},
                "spec": {
                    "serviceAccountName": name,
                    "containers": [{"name": "app", "image": "none", "command": command, "readinessProbe": probe}],
                },
            },
        },
    })
}

fn ask(sandbox: &Sandbox, wanted: &[String]) -> anyhow::Result<()> {
    let (program, port) = (source("known.py"), PORT.to_string());
    let command = ["python3", &program, "ask", "api", &port];
    let wanted = wanted.iter().map(String::as_str);
    let command: Vec<_> = command.into_iter().chain(wanted).collect();
    sandbox.exec("web", &command)?.ok().map(drop)
}

/// An increase is seen between two samples only: all the window long there is every series before
/// the load that counts.
fn load(sandbox: &Sandbox, prometheus: &Prometheus) -> anyhow::Result<()> {
    let before = every_series(sandbox, prometheus)?;
    for (_, side) in SIDES {
        let then = format!("sum(response_total{{{side}}} offset {WINDOW}s) == {before}");
        wait_for(&then, SOON * 2, || prometheus.value(&then))?;
    }
    let wanted = LOAD.map(|(count, status, millis)| format!("{count}x{status}/{millis}"));
    ask(sandbox, &wanted)?;
    for (_, side) in SIDES {
        let now = reaches(prometheus, side, before + REQUESTS)?;
        ensure!(
            now == before + REQUESTS,
            "{before} + {REQUESTS} became {now}"
        );
    }
    prometheus.freeze()
}

/// Asks until each replica has said each status: so many requests.
fn every_series(sandbox: &Sandbox, prometheus: &Prometheus) -> anyhow::Result<f64> {
    let each = [200, 404, 500].map(|status| format!("16x{status}/0"));
    let mut asked = 0.0;
    wait_for("each replica to say each status", SOON, || {
        ask(sandbox, &each)?;
        asked += 48.0;
        for (_, side) in SIDES {
            reaches(prometheus, side, asked)?;
            let series = prometheus.value(&format!("count(response_total{{{side}}})"))?;
            ensure!(series == 6.0, "{series} series of 6");
        }
        Ok::<_, anyhow::Error>(asked)
    })
}

/// Waits until so many responses have been scraped.
fn reaches(prometheus: &Prometheus, side: &str, least: f64) -> anyhow::Result<f64> {
    let query = format!("sum(response_total{{{side}}})");
    wait_for(&query, SOON, || {
        let got = prometheus.value(&query)?;
        ensure!(got >= least, "{got} of {least}");
        Ok::<_, anyhow::Error>(got)
    })
}

fn close(what: &str, got: f64, least: f64, most: f64) -> anyhow::Result<()> {
    eprintln!("    {what}: {got:.4}");
    ensure!(
        (least..=most).contains(&got),
        "{what} is {got}, not from {least} to {most}"
    );
    Ok(())
}

fn success_rates(prometheus: &Prometheus) -> anyhow::Result<()> {
    let expected = (REQUESTS - FAILURES) / REQUESTS;
    for (name, side) in SIDES {
        let of = |more: &str| format!("sum(increase(response_total{{{side}{more}}}[{WINDOW}s]))");
        let query = format!("{} / {}", of(",classification=\"success\""), of(""));
        let got = prometheus.value(&query)?;
        close(
            name,
            got,
            expected - SCRAPED_APART,
            expected + SCRAPED_APART,
        )?;
    }
    Ok(())
}

fn rates(prometheus: &Prometheus) -> anyhow::Result<()> {
    let expected = REQUESTS / f64::from(WINDOW);
    for (name, side) in SIDES {
        let query = format!("sum(increase(response_total{{{side}}}[{WINDOW}s])) / {WINDOW}");
        let got = prometheus.value(&query)?;
        close(name, got, expected * 0.999, expected * (1.0 + EXTRAPOLATED))?;
    }
    Ok(())
}

/// Both sides see the server's time; outbound and the network's.
fn latencies(prometheus: &Prometheus) -> anyhow::Result<()> {
    for (name, side) in SIDES {
        for (quantile, expected) in [(0.5, P50), (0.95, P95), (0.99, P99)] {
            let of = format!("response_latency_ms_bucket{{{side}}}[{WINDOW}s]");
            let query = format!(
                "histogram_quantile({quantile}, sum(increase({of})) by (le, namespace, deployment))"
            );
            let got = prometheus.value(&query)?;
            let what = format!("{name}, p{}", quantile * 100.0);
            close(
                &what,
                got,
                expected * (1.0 - HELD_UP),
                expected * (1.0 + HELD_UP),
            )?;
        }
    }
    Ok(())
}

/// What Linkerd's dashboards group by: each pod, and its peers.
fn ends(prometheus: &Prometheus) -> anyhow::Result<()> {
    let window = format!("[{WINDOW}s]");
    for (pods, (name, side)) in ["pod", "dst_pod"].into_iter().zip(SIDES) {
        let query = format!("min(sum(increase(response_total{{{side}}}{window})) by ({pods}))");
        let replicas = format!("count(count(response_total{{{side}}}) by ({pods}))");
        close(
            &format!("{name}, replicas"),
            prometheus.value(&replicas)?,
            2.0,
            2.0,
        )?;
        // The balancer takes turns by chance and load: none of two as fast as each other is left out.
        let least = prometheus.value(&query)?;
        close(
            &format!("{name}, least"),
            least,
            REQUESTS / 5.0,
            REQUESTS / 2.0 * 1.1,
        )?;
    }
    // Nothing of these pods was counted under other ends.
    let of = |what: &str| {
        format!("sum(increase(response_total{{namespace=\"default\",{what}}}{window}))")
    };
    for (direction, tls, client, server) in [
        ("inbound", "true", CLIENT_ID, ""),
        ("outbound", "true", "", SERVER_ID),
    ] {
        let right = format!(
            "direction=\"{direction}\",tls=\"{tls}\",client_id=\"{client}\",server_id=\"{server}\""
        );
        let all = of(&format!("direction=\"{direction}\""));
        let got = prometheus.value(&format!("{} / {all}", of(&right)))?;
        close(&format!("{direction}, of all"), got, 0.9999, 1.0001)?;
    }
    Ok(())
}

/// It looks for three seconds into a load: of some 200 requests, 6 or so fail.
fn stat(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (program, port) = (source("known.py"), PORT.to_string());
    let wanted = LOAD.map(|(count, status, millis)| format!("{count}x{status}/{millis}"));
    let command = ["python3", &program, "ask", "api", &port];
    let wanted = wanted.iter().map(String::as_str);
    let command: Vec<_> = command.into_iter().chain(wanted).collect();
    let loading = sandbox.spawn("web", &command)?;
    let flags = ["deploy/api", "-n", NAMESPACE, "-t", "3s", "-o", "json"];
    let said: Value = sandbox.sandbox("stat", &flags)?.json()?;
    loading.finish(SOON)?.ok()?;
    let [row] = said.as_array().map(Vec::as_slice).unwrap_or_default() else {
        anyhow::bail!("not one deployment: {said}");
    };
    ensure!(row["meshed"] == "2/2" && row["name"] == "api", "{row}");
    let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
    close("success", number("success"), 0.9, 0.9999)?;
    close("rps", number("rps"), 30.0, 110.0)?;
    close("p50", number("latency_ms_p50"), 150.0, 200.0)?;
    close("p99", number("latency_ms_p99"), 500.0, 1000.0)
}

fn gone(sandbox: &Sandbox, prometheus: &Prometheus) -> anyhow::Result<()> {
    prometheus.thaw();
    let metrics = [
        "request_total",
        "response_total",
        "response_latency_ms_bucket",
        "tcp_open_total",
    ];
    let left = |labels: &str| {
        let each = metrics.map(|name| format!("{name}{{{labels}}}"));
        prometheus.value(&format!("count({}) or vector(0)", each.join(" or ")))
    };
    ensure!(
        left("deployment=\"web\"")? > 0.0,
        "there is nothing that could vanish"
    );
    std::fs::remove_file(sandbox.dir().join("deployment-web.json"))?;
    wait_for("the series of web to vanish", SOON, || {
        let left = left("deployment=\"web\"")?;
        ensure!(left == 0.0, "{left} are left");
        Ok::<_, anyhow::Error>(())
    })?;
    // Those of who was asked stay: the identity of a client that may come back.
    ensure!(
        left("deployment=\"api\"")? > 0.0,
        "those of api are gone, too"
    );
    Ok(())
}

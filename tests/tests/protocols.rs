// SPDX-License-Identifier: Apache-2.0
//! Programs that everybody knows, unmodified, through the mesh and beside it in the same run.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::report::Report,
    manifests::Pod,
    process::run,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const PROGRAMS: [&str; 8] = [
    "nginx",
    "curl",
    "redis-server",
    "redis-benchmark",
    "mariadbd",
    "mariadb",
    "mariadb-install-db",
    "iperf3",
];
/// The mesh may cost a greeting the time of its handshakes, but no time-out of anybody.
const NO_DELAY: u64 = 50_000;

#[test]
fn protocols() -> anyhow::Result<()> {
    let mut there = require::root()?;
    for program in PROGRAMS {
        there &= require::program(program)?;
    }
    if !there {
        return Ok(());
    }
    let files = TempDir::with_prefix("culvert-protocols-")?;
    let mut suite = Suite::new(sandbox(files.path())?);
    suite.step("nginx and curl", nginx);
    suite.step("redis", redis);
    suite.step("MariaDB speaks first, without a delay", mariadb);
    suite.step("iperf3 both ways", iperf3);
    suite.step("all of it was mutual TLS", tls);
    suite.finish()
}

/// Meshed: `client` on the first node, the servers on the second. Unmeshed: the same with `-plain`.
fn sandbox(files: &Path) -> anyhow::Result<Sandbox> {
    let mut plan = Plan::new("protocols")?;
    for suffix in ["", "-plain"] {
        for pod in pods(files, suffix)? {
            plan = plan.pod(&if suffix.is_empty() { pod.meshed() } else { pod })?;
        }
    }
    plan.up()
}

fn pods(files: &Path, suffix: &str) -> anyhow::Result<Vec<Pod>> {
    let name = |name: &str| format!("{name}{suffix}");
    let nginx = nginx_conf(&files.join(name("nginx")))?;
    let data = database(&files.join(name("mariadb")))?;
    Ok(vec![
        Pod::new(&name("client"), "n1", &["sleep", "infinity"]),
        Pod::new(&name("nginx"), "n2", &["nginx", "-c", &nginx]).tcp_probe(8080),
        Pod::new(
            &name("redis"),
            "n2",
            &[
                "redis-server",
                "--bind",
                "0.0.0.0",
                "--protected-mode",
                "no",
                "--save",
                "",
            ],
        )
        .tcp_probe(6379),
        Pod::new(
            &name("mariadb"),
            "n2",
            &[
                "mariadbd",
                "--no-defaults",
                "--user=root",
                "--skip-grant-tables",
                "--bind-address=0.0.0.0",
                "--port=3306",
                "--skip-name-resolve",
                &format!("--datadir={data}"),
                &format!("--socket={data}/socket"),
                &format!("--pid-file={data}/pid"),
            ],
        ),
        Pod::new(&name("iperf3"), "n2", &["iperf3", "-s"]),
    ])
}

fn nginx_conf(dir: &Path) -> anyhow::Result<String> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("index.html"), "underground\n".repeat(1000))?;
    let root = dir.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {root}/{kind};"))
        .concat();
    let text = format!(
        "daemon off; user root; pid {root}/pid; error_log stderr; events {{}}\n\
         http {{ access_log /dev/stdout; {temporary}\n\
         server {{ listen 8080; root {root}; }} }}\n"
    );
    let conf = dir.join("nginx.conf");
    fs::write(&conf, text)?;
    Ok(conf.display().to_string())
}

fn database(dir: &Path) -> anyhow::Result<String> {
    fs::create_dir_all(dir)?;
    let data = dir.display().to_string();
    let mut install = Command::new("mariadb-install-db");
    install.args([
        "--no-defaults",
        "--user=root",
        "--skip-test-db",
        &format!("--datadir={data}"),
    ]);
    run(&mut install, SOON)?.ok()?;
    Ok(data)
}

fn nginx(sandbox: &Sandbox) -> anyhow::Result<()> {
    let url = format!("http://{}/", sandbox.at("nginx", 8080)?);
    let first = wait_for("nginx", SOON, || {
        sandbox.exec("client", &["curl", "-sSf", &url])?.ok()
    })?;
    ensure!(
        first.stdout == "underground\n".repeat(1000),
        "got {}",
        first.stdout
    );
    let flags = ["-sSf", "-Z", "--parallel-max", "16", "-o", "/dev/null"];
    let many: Vec<_> = ["curl"]
        .iter()
        .chain(&flags)
        .copied()
        .chain([url.as_str(); 200])
        .collect();
    sandbox.exec("client", &many)?.ok()?;
    let (logs, client) = (sandbox.logs("nginx")?, sandbox.ip("client")?.to_string());
    let of_client = logs
        .lines()
        .filter(|line| line.starts_with(&client))
        .count();
    ensure!(
        of_client == 201,
        "{of_client} lines of nginx's log begin with {client}"
    );
    Ok(())
}

fn redis(sandbox: &Sandbox) -> anyhow::Result<()> {
    let ip = sandbox.ip("redis")?.to_string();
    let cli = ["redis-cli", "-h", &ip];
    let call = |args: &[&str]| sandbox.exec("client", &[&cli[..], args].concat())?.ok();
    wait_for("redis", SOON, || call(&["ping"]))?;
    call(&["set", "depth", "12"])?;
    ensure!(call(&["get", "depth"])?.stdout.trim() == "12");
    let benchmark = [
        "redis-benchmark",
        "-h",
        &ip,
        "-q",
        "-n",
        "20000",
        "-c",
        "50",
        "-t",
        "set,get",
    ];
    let output = sandbox.exec("client", &benchmark)?.ok()?.stdout;
    let last = output.replace('\r', "\n");
    for line in last
        .lines()
        .filter(|line| line.contains("requests per second"))
    {
        eprintln!("    meshed {line}");
    }
    ensure!(last.contains("SET:") && last.contains("GET:"), "{last}");
    Ok(())
}

fn mariadb(sandbox: &Sandbox) -> anyhow::Result<()> {
    let [meshed, plain] =
        ["", "-plain"].map(|suffix| wait_for("MariaDB", SOON, || handshake(sandbox, suffix)));
    let (meshed, plain) = (meshed?, plain?);
    eprintln!(
        "    first byte meshed {:?}, unmeshed {:?}",
        meshed.exchange, plain.exchange
    );
    let extra = meshed.exchange.p50_us.saturating_sub(plain.exchange.p50_us);
    ensure!(
        extra < NO_DELAY,
        "the mesh delays the greeting by {extra} µs"
    );
    let ip = sandbox.ip("mariadb")?.to_string();
    let sql = "select repeat('x', 1000000), connection_id()";
    let query = [
        "mariadb",
        "--no-defaults",
        "-h",
        &ip,
        "-u",
        "root",
        "-N",
        "-e",
        sql,
    ];
    let rows = sandbox.exec("client", &query)?.ok()?.stdout;
    ensure!(rows.len() > 1_000_000, "got {} bytes", rows.len());
    Ok(())
}

fn handshake(sandbox: &Sandbox, suffix: &str) -> anyhow::Result<Report> {
    let at = sandbox.at(&format!("mariadb{suffix}"), 3306)?;
    let flags = ["--exchange", "greeting", "--count", "20"];
    let report = sandbox.connect(&format!("client{suffix}"), &at, &flags)?;
    let greeting = &report.seen()?.reply;
    ensure!(greeting.contains("MariaDB"), "the greeting is {greeting:?}");
    Ok(report)
}

fn iperf3(sandbox: &Sandbox) -> anyhow::Result<()> {
    for flags in [&["-P", "2"][..], &["-P", "2", "-R"]] {
        let meshed = throughput(sandbox, "", flags)?;
        let plain = throughput(sandbox, "-plain", flags)?;
        eprintln!(
            "    {flags:?}: {meshed:.2} of {plain:.2} Gbit/s, {:.2}",
            meshed / plain
        );
        ensure!(meshed > 0.0, "nothing moved");
    }
    Ok(())
}

fn throughput(sandbox: &Sandbox, suffix: &str, flags: &[&str]) -> anyhow::Result<f64> {
    let ip = sandbox.ip(&format!("iperf3{suffix}"))?.to_string();
    let command = [&["iperf3", "-c", &ip, "-t", "2", "-J"][..], flags].concat();
    let client = format!("client{suffix}");
    let report: Value = sandbox.exec(&client, &command)?.json()?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| format!("iperf3 said {report}"))? / 1e9)
}

fn tls(sandbox: &Sandbox) -> anyhow::Result<()> {
    for server in ["nginx", "redis", "mariadb", "iperf3"] {
        let id = format!("spiffe://cluster.local/ns/default/sa/{server}");
        let labels = [
            ("pod", "client"),
            ("direction", "outbound"),
            ("tls", "true"),
            ("server_id", &*id),
        ];
        sandbox.metric_reaches(Daemon::Proxy("n1"), "tcp_open_total", &labels, 1.0)?;
    }
    Ok(())
}

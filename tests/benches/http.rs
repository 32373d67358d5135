// SPDX-License-Identifier: Apache-2.0
//! What requests cost through the mesh, beside the same pods unmeshed in the same run: nginx on one
//! node, h2load and wrk on the other. Not a test: it prints, and writes `target/bench/http.json`.
//! `make bench`, `make bench-quick`

use std::{env, fs, net::IpAddr, path::Path, thread};

use anyhow::Context as _;
use culvert_tests::{
    manifests::Pod,
    programs::PLAIN,
    require,
    sandbox::{Daemon, Plan, Sandbox},
};
use tempfile::TempDir;

#[path = "http/load.rs"]
mod load;
#[path = "http/proxies.rs"]
mod proxies;
#[path = "http/report.rs"]
mod report;

use self::{
    load::{LOADS, Load, Run},
    proxies::Proxies,
    report::{Report, Row},
};

const PROGRAMS: [&str; 3] = ["h2load", "nginx", "wrk"];
const CLIENT: &str = "client";
const SERVER: &str = "server";

/// How much of it.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    seconds: u64,
}

/// What it is run with.
#[derive(Debug)]
struct Bench<'a> {
    sandbox: &'a Sandbox,
    files: &'a Path,
    proxies: Proxies,
    direct: IpAddr,
    mesh: IpAddr,
    seconds: u64,
}

/// The two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Between the pods beside the mesh.
    Direct,
    /// Between the meshed ones.
    Mesh,
}

fn main() -> anyhow::Result<()> {
    if !require::programs(&PROGRAMS)? {
        return Ok(());
    }
    let effort = match env::args().any(|arg| arg == "--quick") {
        true => Effort {
            rounds: 3,
            seconds: 2,
        },
        false => Effort {
            rounds: 5,
            seconds: 5,
        },
    };
    let files = TempDir::with_prefix("culvert-bench-")?;
    let mut sandbox = up(files.path())?;
    let measured = measure(&sandbox, effort, files.path());
    if measured.is_err() {
        sandbox.print_logs();
    }
    sandbox.down()?;
    let report = measured?;
    println!("\n{}", report.render());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench/http.json");
    fs::create_dir_all(file.parent().context("no directory")?)?;
    fs::write(&file, serde_json::to_string_pretty(&report)?)?;
    println!("Written to {}", file.canonicalize()?.display());
    Ok(())
}

fn up(files: &Path) -> anyhow::Result<Sandbox> {
    eprintln!("starting two nodes with pods in the mesh and beside it");
    let mut plan = Plan::new("bench")?;
    for suffix in ["", PLAIN] {
        let meshed = |pod: Pod| if suffix.is_empty() { pod.meshed() } else { pod };
        let client = format!("{CLIENT}{suffix}");
        let server = format!("{SERVER}{suffix}");
        let conf = nginx(files, &server)?;
        let server = Pod::new(&server, "n2", &["nginx", "-c", &conf]).tcp_probe(load::HTTP1);
        plan = plan
            .pod(&meshed(Pod::new(&client, "n1", &["sleep", "infinity"])))?
            .pod(&meshed(server))?;
    }
    plan.up()
}

/// One worker that answers a short body and logs nothing.
fn nginx(files: &Path, pod: &str) -> anyhow::Result<String> {
    let dir = files.join(pod);
    fs::create_dir_all(&dir)?;
    let (http1, http2) = (load::HTTP1, load::HTTP2);
    let body = "x".repeat(load::BODY);
    let text = format!(
        "daemon off; user root; pid {0}/pid; error_log stderr crit; worker_processes 1;
         events {{ worker_connections 4096; }}
         http {{
             access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
             client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
             uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
             server {{ listen {http1} backlog=4096; location / {{ return 200 '{body}'; }} }}
             server {{ listen {http2} http2 backlog=4096; location / {{ return 200 '{body}'; }} }}
         }}\n",
        dir.display()
    );
    let conf = dir.join("nginx.conf");
    fs::write(&conf, text)?;
    Ok(conf.display().to_string())
}

fn measure(sandbox: &Sandbox, effort: Effort, files: &Path) -> anyhow::Result<Report> {
    let bench = Bench {
        sandbox,
        files,
        proxies: Proxies::of(sandbox)?,
        direct: sandbox.ip(&format!("{SERVER}{PLAIN}"))?,
        mesh: sandbox.ip(SERVER)?,
        seconds: effort.seconds,
    };
    let load_before = fs::read_to_string("/proc/loadavg")?.trim().to_owned();
    let resident_mib_before = bench.proxies.resident()?;
    let mut rows: Vec<_> = LOADS.iter().map(|load| Row::new(load.name)).collect();
    for round in 0..effort.rounds {
        for (load, row) in LOADS.iter().zip(&mut rows) {
            eprintln!("round {} of {}: {}", round + 1, effort.rounds, load.name);
            // Whoever comes second finds the machine warmer.
            let mut ways = [Way::Direct, Way::Mesh];
            ways.rotate_left(round % 2);
            for way in ways {
                let run = bench.run(load, way)?;
                eprintln!("    {way:?}: {run}");
                row.runs(way).push(run);
            }
        }
    }
    rows.iter_mut().for_each(Row::compare);
    let counted = sandbox.metric(Daemon::Proxy("n2"), "response_total", &[])?;
    Ok(Report {
        rounds: effort.rounds,
        seconds: effort.seconds,
        cpus: thread::available_parallelism()?.get(),
        load_before,
        layer7: counted > 0.0,
        resident_mib_before,
        resident_mib_after: bench.proxies.resident()?,
        rows,
    })
}

// === impl Bench ===

impl Bench<'_> {
    fn run(&self, load: &Load, way: Way) -> anyhow::Result<Run> {
        let (client, to) = match way {
            Way::Direct => (format!("{CLIENT}{PLAIN}"), self.direct),
            Way::Mesh => (CLIENT.to_owned(), self.mesh),
        };
        let before = self.proxies.cpu()?;
        let mut run = load.run(self.sandbox, &client, to, self.seconds, self.files)?;
        let used = self.proxies.cpu()? - before;
        run.cpu_per_100k = used.as_secs_f64() * 1e5 / run.requests.max(1) as f64;
        Ok(run)
    }
}

// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox demo`: the demo application, what the mesh sees of it, and a proof that nobody
//! else sees anything.

use std::{
    fs,
    io::{self, IsTerminal},
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::sleep,
};

use super::{
    api::Status,
    down,
    error::{Doing, Error, Result},
    layout::Layout,
    options::Options,
    up,
};
use crate::{
    args::{Demo, Format},
    output::{self, Progress},
};

pub mod app;
mod edges;
mod evidence;
mod verdict;
mod watch;

use self::{
    edges::Edges,
    evidence::Evidence,
    verdict::{Seen, Verdict},
    watch::Watch,
};

/// The demo application's manifests.
const MANIFESTS: [(&str, &str); 6] = [
    (
        "namespace.yaml",
        include_str!("../../../examples/demo/namespace.yaml"),
    ),
    ("web.yaml", include_str!("../../../examples/demo/web.yaml")),
    ("api.yaml", include_str!("../../../examples/demo/api.yaml")),
    ("db.yaml", include_str!("../../../examples/demo/db.yaml")),
    (
        "traffic.yaml",
        include_str!("../../../examples/demo/traffic.yaml"),
    ),
    (
        "outside.yaml",
        include_str!("../../../examples/demo/outside.yaml"),
    ),
];

const NODES: u8 = 2;
const PATIENCE: Duration = Duration::from_secs(90);
const REFRESH: Duration = Duration::from_secs(1);

/// How long the mesh may take to carry every edge of the application.
const WARM_UP: Duration = Duration::from_secs(30);

/// Runs the command.
pub fn run(args: Demo) -> Result<()> {
    let layout = Layout::new(args.name.clone());
    refuse_other(&layout)?;
    down::remove(&layout)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.doing(|| "start a runtime".into())?;
    let shown = runtime.block_on(async {
        tokio::select! {
            shown = show(&layout, &args) => shown,
            interrupted = interrupted() => interrupted,
        }
    });
    runtime.shutdown_background();
    if args.keep {
        let name = &layout.name;
        eprintln!("The sandbox stays: culvert sandbox status --name {name}");
        return shown;
    }
    if shown.is_err() {
        eprintln!("With --keep the sandbox stays, to be looked at.");
    }
    // The first thing that went wrong is the one to be told.
    let removed = down::remove(&layout).map(|_| ());
    shown.and(removed)
}

/// An earlier demonstration is replaced; what a user set up is not.
fn refuse_other(layout: &Layout) -> Result<()> {
    let Ok(options) = Options::load(layout) else {
        return Ok(());
    };
    if options.dir == source(layout) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "the sandbox {:?} is no demonstration's but has the manifests of {}: say another --name, \
         or remove it with `culvert sandbox down`",
        layout.name.as_str(),
        options.dir.display()
    )))
}

fn source(layout: &Layout) -> PathBuf {
    layout.root().join("source")
}

async fn interrupted() -> Result<()> {
    let mut term = signal(SignalKind::terminate()).doing(|| "wait for signals".into())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
    Err(Error::Demo(vec!["it was interrupted".into()]))
}

async fn show(layout: &Layout, args: &Demo) -> Result<()> {
    let dir = write_manifests(layout).doing(|| "write the demo's manifests".into())?;
    let options = up::options(dir, NODES, args.start.clone())?;
    let of = layout.clone();
    let up = spawn_blocking(move || up::bring_up(&of, options, PATIENCE)).await;
    let status = up.map_err(|error| Error::Supervisor(error.to_string()))??;
    let verdict = observe(layout, &status, args).await?;
    let printed = match args.output {
        Format::Json => output::print_json(&verdict),
        Format::Table => output::print(&verdict.render(output::colours())),
    };
    printed.doing(|| "print".into())?;
    verdict.judge()
}

fn write_manifests(layout: &Layout) -> io::Result<PathBuf> {
    let dir = source(layout);
    fs::create_dir_all(&dir)?;
    for (file, text) in MANIFESTS {
        fs::write(dir.join(file), text)?;
    }
    Ok(dir)
}

async fn observe(layout: &Layout, status: &Status, args: &Demo) -> Result<Verdict> {
    let mut watch = Watch::open(layout, status)?;
    warm_up(&mut watch).await?;
    let evidence = Evidence::start(layout, status)?;
    let before = watch.look().await;
    let client_before = evidence::client_report(layout, status)?;
    let live = args.output == Format::Table;
    let started = Instant::now();
    let edges = follow(&mut watch, &before, args.time, live).await;
    let seconds = started.elapsed().as_secs_f64();
    let found = evidence.stop()?;
    let client = evidence::client_report(layout, status)?.since(&client_before);
    let seen = Seen {
        edges,
        seconds,
        found,
        client,
    };
    Ok(Verdict::of(seen, status))
}

/// Waits until every edge of the application has carried something under mutual TLS.
async fn warm_up(watch: &mut Watch) -> Result<()> {
    let mut progress = Progress::start();
    let until = Instant::now() + WARM_UP;
    loop {
        let edges = watch.look().await;
        let missing = edges.missing();
        if missing.is_empty() {
            progress.end();
            return Ok(());
        }
        if Instant::now() > until {
            progress.end();
            return Err(Error::Demo(not_carried(&missing, &edges, watch)));
        }
        progress.say(&format!("waiting for traffic {}", missing.join(", ")));
        sleep(REFRESH / 5).await;
    }
}

fn not_carried(missing: &[String], edges: &Edges, watch: &Watch) -> Vec<String> {
    let missing = missing.iter().map(|edge| {
        format!(
            "no connection {edge} was carried with mutual TLS in {} s",
            WARM_UP.as_secs()
        )
    });
    let seen = format!(
        "the proxies counted:\n{}",
        edges.table(&Edges::default(), 1.0).render(false)
    );
    missing.chain([seen]).chain(watch.trouble.clone()).collect()
}

/// Shows what flows until the time is up: what flowed in that time.
async fn follow(watch: &mut Watch, before: &Edges, time: Duration, live: bool) -> Edges {
    let started = Instant::now();
    let (mut last, mut last_at) = (before.clone(), started);
    loop {
        let left = time.saturating_sub(started.elapsed());
        sleep(left.min(REFRESH)).await;
        let now = watch.look().await;
        let seconds = last_at.elapsed().as_secs_f64();
        if live {
            draw(&now, &last, seconds, started.elapsed(), time);
        }
        (last, last_at) = (now, Instant::now());
        if started.elapsed() >= time {
            return last.since(before);
        }
    }
}

/// A terminal shows one table that changes; a file gets one every few seconds.
fn draw(now: &Edges, last: &Edges, seconds: f64, elapsed: Duration, time: Duration) {
    let terminal = io::stdout().is_terminal();
    if !terminal && !elapsed.as_secs().is_multiple_of(5) {
        return;
    }
    let clear = if terminal { "\x1b[H\x1b[J" } else { "" };
    let table = now.table(last, seconds).render(output::colours());
    let (elapsed, time) = (elapsed.as_secs(), time.as_secs());
    let text =
        format!("{clear}What flows between which identities, {elapsed} of {time} s\n\n{table}\n");
    // A table that can't be shown is not worth the demonstration.
    let _ = output::print(&text);
}

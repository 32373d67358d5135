// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox demo`: the demo application, what the mesh sees of it, and a proof that nobody
//! else sees anything.

use std::{
    collections::VecDeque,
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
    api::{self, Status},
    down,
    error::{Doing, Error, Result},
    layout::Layout,
    options::Options,
    up,
    watch::Watch,
};
use crate::{
    args::{Demo, Format},
    output::{self, Progress},
};

pub mod app;
mod edges;
mod evidence;
mod verdict;

use self::{
    edges::Edges,
    evidence::Evidence,
    verdict::{Seen, Verdict},
};

/// The demo application's manifests.
const MANIFESTS: [(&str, &str); 5] = [
    (
        "namespace.yaml",
        include_str!("../../../examples/demo/namespace.yaml"),
    ),
    ("web.yaml", include_str!("../../../examples/demo/web.yaml")),
    ("api.yaml", include_str!("../../../examples/demo/api.yaml")),
    ("db.yaml", include_str!("../../../examples/demo/db.yaml")),
    (
        "outside.yaml",
        include_str!("../../../examples/demo/outside.yaml"),
    ),
];

/// The manifest of what sends requests to it.
const TRAFFIC: (&str, &str) = (
    "traffic.yaml",
    include_str!("../../../examples/demo/traffic.yaml"),
);

/// Below the live table.
const NOTE: &str = "traffic asks web, web asks api, api asks db by gRPC, each over one connection that it keeps.\n\
    db fails one call in twenty, on purpose; api answers without it. Ctrl-C ends it.";

/// Rates and latencies of the live table are of so many looks.
const WINDOW: usize = 5;

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
    let status = bring_up(layout, &options).await?;
    // Traffic begins under the eyes of the captures: connections are kept, and a capture that
    // comes later sees none begin.
    let evidence = Evidence::start(layout, &status)?;
    begin_traffic(layout).doing(|| "write the demo's manifests".into())?;
    bring_up(layout, &options).await?;
    let verdict = observe(layout, evidence, args).await?;
    let printed = match args.output {
        Format::Json => output::print_json(&verdict),
        Format::Table => output::print(&verdict.render(output::colours())),
    };
    printed.doing(|| "print".into())?;
    verdict.judge()
}

async fn bring_up(layout: &Layout, options: &Options) -> Result<Status> {
    let (of, options) = (layout.clone(), options.clone());
    let up = spawn_blocking(move || up::bring_up(&of, options, PATIENCE)).await;
    up.map_err(|error| Error::Supervisor(error.to_string()))?
}

fn write_manifests(layout: &Layout) -> io::Result<PathBuf> {
    let dir = source(layout);
    fs::create_dir_all(&dir)?;
    for (file, text) in MANIFESTS {
        fs::write(dir.join(file), text)?;
    }
    Ok(dir)
}

fn begin_traffic(layout: &Layout) -> io::Result<()> {
    let (file, text) = TRAFFIC;
    fs::write(source(layout).join(file), text)
}

async fn observe(layout: &Layout, evidence: Evidence, args: &Demo) -> Result<Verdict> {
    let mut watch = Watch::open(layout, &api::ask_status(layout)?)?;
    warm_up(&mut watch).await?;
    // The pods of the traffic are there now, too.
    let status = api::ask_status(layout)?;
    let client_before = evidence::client_report(layout, &status)?;
    let live = args.output == Format::Table;
    let edges = follow(&mut watch, args.time, live).await;
    let found = evidence.stop()?;
    let client = evidence::client_report(layout, &status)?.since(&client_before);
    let seen = Seen {
        edges,
        found,
        client,
    };
    Ok(Verdict::of(seen, &status))
}

/// Waits until every edge of the application has carried something under mutual TLS.
async fn warm_up(watch: &mut Watch) -> Result<()> {
    let mut progress = Progress::start();
    let until = Instant::now() + WARM_UP;
    let mut edges = Edges::default();
    loop {
        edges.advance(&Edges::of(&watch.look().await));
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
    let seen = format!("the proxies counted:\n{}", edges.table().render(false));
    missing.chain([seen]).chain(watch.trouble.clone()).collect()
}

/// Shows what flows until the time is up: what flowed in that time.
async fn follow(watch: &mut Watch, time: Duration, live: bool) -> Edges {
    let started = Instant::now();
    let (mut all, mut last) = (Edges::default(), VecDeque::new());
    // What was counted before is not shown.
    watch.look().await;
    loop {
        let left = time.saturating_sub(started.elapsed());
        sleep(left.min(REFRESH)).await;
        let now = Edges::of(&watch.look().await);
        all.advance(&now);
        last.push_back(now);
        if last.len() > WINDOW {
            last.pop_front();
        }
        if live {
            draw(&last, started.elapsed(), time);
        }
        if started.elapsed() >= time {
            return all;
        }
    }
}

/// A terminal shows one table that changes; a file gets one every few seconds.
fn draw(last: &VecDeque<Edges>, elapsed: Duration, time: Duration) {
    let terminal = io::stdout().is_terminal();
    if !terminal && !elapsed.as_secs().is_multiple_of(5) {
        return;
    }
    let clear = if terminal { "\x1b[H\x1b[J" } else { "" };
    let mut window = Edges::default();
    last.iter().for_each(|edges| window.advance(edges));
    let table = window.table().render(output::colours());
    let (elapsed, time) = (elapsed.as_secs(), time.as_secs());
    let text = format!(
        "{clear}What flows between which identities, {elapsed} of {time} s\n\n{table}\n{NOTE}\n"
    );
    // A table that can't be shown is not worth the demonstration.
    let _ = output::print(&text);
}

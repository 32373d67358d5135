// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox stat`: the golden metrics of what pods answer, with the columns of Linkerd's
//! `viz stat`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::sleep;

use super::{
    api::{self, PodView, Status},
    error::{Doing, Error, Result},
    golden::{Golden, Responses},
    layout::Layout,
    scrape::Sample,
    watch::{Look, Watch},
};
use crate::{
    args::{self, StatFormat},
    output::{self, Cell, Progress, Style, Table},
};

mod resource;

pub use self::resource::Resource;
use self::resource::{Kind, Pod};

const TICK: Duration = Duration::from_millis(200);

/// What pods of one resource answered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    pods: usize,
    meshed: usize,
    status: String,
    responses: Responses,
    open: f64,
    read: f64,
    written: f64,
}

/// Of which resource: its namespace, its kind and its name.
type Rows = BTreeMap<(String, Kind, String), Row>;

/// A row for programs, with the names of Linkerd.
#[derive(Debug, Serialize)]
struct Line<'a> {
    namespace: &'a str,
    kind: &'static str,
    name: &'a str,
    meshed: String,
    #[serde(flatten)]
    golden: Golden,
    tcp_open_connections: u64,
    tcp_read_bytes_rate: f64,
    tcp_write_bytes_rate: f64,
}

/// Runs the command.
pub fn run(args: args::Stat) -> Result<()> {
    let layout = Layout::new(args.target.name.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.doing(|| "start a runtime".into())?;
    let look = runtime.block_on(look(&layout, args.time_window))?;
    let status = api::ask_status(&layout)?;
    let rows = rows(&args, &status, &look);
    if rows.is_empty() && args.resource.name.is_some() {
        return Err(Error::Usage(format!(
            "there is no {}: see `culvert sandbox stat {}`",
            args.resource,
            args.resource.kind.as_str()
        )));
    }
    let printed = match args.output {
        StatFormat::Json => output::print_json(&lines(&rows, look.seconds)),
        StatFormat::Table | StatFormat::Wide => {
            let table = table(&args, &rows, look.seconds);
            output::print(&table.render(output::colours()))
        }
    };
    printed.doing(|| "print".into())
}

async fn look(layout: &Layout, time: Duration) -> Result<Look> {
    let mut watch = Watch::open(layout, &api::ask_status(layout)?)?;
    let mut progress = Progress::start();
    let started = Instant::now();
    watch.look().await;
    while started.elapsed() < time {
        sleep(TICK.min(time.saturating_sub(started.elapsed()))).await;
        progress.say(&format!("looking for {} s", time.as_secs()));
    }
    let look = watch.look().await;
    progress.end();
    match watch.trouble.first() {
        Some(trouble) => Err(Error::Supervisor(trouble.clone())),
        None => Ok(look),
    }
}

fn rows(args: &args::Stat, status: &Status, look: &Look) -> Rows {
    let wanted = |namespace: &str| args.namespace.as_deref().is_none_or(|it| it == namespace);
    let mut rows = Rows::new();
    for pod in status.pods.iter().filter(|pod| wanted(&pod.namespace)) {
        if let Some(key) = args.resource.of(&Pod::from(pod)) {
            rows.entry(key).or_default().count(pod);
        }
    }
    // A connection's peer is its client here, as it is for Linkerd.
    let inbound = look.samples.iter().filter(|sample| {
        sample.label("direction") == "inbound" && ["", "src"].contains(&sample.label("peer"))
    });
    for sample in inbound.filter(|sample| wanted(sample.label("namespace"))) {
        let key = args.resource.of(&Pod::from(sample));
        // What has no pod any more is not told of.
        if let Some(row) = key.and_then(|key| rows.get_mut(&key)) {
            row.add(sample);
        }
    }
    rows
}

fn table(args: &args::Stat, rows: &Rows, seconds: f64) -> Table {
    let wide = args.output == StatFormat::Wide;
    let pods = args.resource.kind == Kind::Pod;
    let mut headings = Vec::new();
    headings.extend(args.namespace.is_none().then_some("NAMESPACE"));
    headings.push("NAME");
    headings.extend(pods.then_some("STATUS"));
    headings.extend([
        "MESHED",
        "SUCCESS",
        "RPS",
        "LATENCY_P50",
        "LATENCY_P95",
        "LATENCY_P99",
        "TCP_CONN",
    ]);
    headings.extend(
        [
            wide.then_some("READ_BYTES/SEC"),
            wide.then_some("WRITE_BYTES/SEC"),
        ]
        .into_iter()
        .flatten(),
    );
    let mut table = Table::new(&headings);
    for ((namespace, kind, name), row) in rows {
        let mut cells: Vec<Cell> = Vec::new();
        cells.extend(args.namespace.is_none().then(|| namespace.as_str().into()));
        cells.push(match args.resource.kind {
            Kind::All => format!("{}/{name}", kind.short()).into(),
            _ => name.as_str().into(),
        });
        cells.extend(pods.then(|| row.status.as_str().into()));
        cells.extend(row.cells(seconds));
        cells.extend(wide.then(|| row.bytes(seconds)).into_iter().flatten());
        table.row(cells);
    }
    table
}

fn lines(rows: &Rows, seconds: f64) -> Vec<Line<'_>> {
    let all = rows.iter();
    all.map(|(key, row)| Line::of(key, row, seconds)).collect()
}

// === impl Line ===

impl<'a> Line<'a> {
    fn of((namespace, kind, name): &'a (String, Kind, String), row: &Row, seconds: f64) -> Self {
        Line {
            namespace,
            kind: kind.as_str(),
            name,
            meshed: row.meshed(),
            golden: row.responses.golden(seconds),
            tcp_open_connections: row.open as u64,
            tcp_read_bytes_rate: row.read / seconds.max(0.001),
            tcp_write_bytes_rate: row.written / seconds.max(0.001),
        }
    }
}

// === impl Row ===

impl Row {
    fn count(&mut self, pod: &PodView) {
        self.pods += 1;
        self.meshed += usize::from(pod.meshed);
        self.status.clone_from(&pod.phase);
    }

    fn add(&mut self, sample: &Sample) {
        match sample.name.as_str() {
            "tcp_open_connections" => self.open += sample.value,
            "tcp_read_bytes_total" => self.read += sample.value,
            "tcp_write_bytes_total" => self.written += sample.value,
            _ => self.responses.add(sample),
        }
    }

    fn meshed(&self) -> String {
        format!("{}/{}", self.meshed, self.pods)
    }

    fn cells(&self, seconds: f64) -> Vec<Cell> {
        let golden = self.responses.golden(seconds);
        let style = match self.meshed == self.pods {
            true => Style::Plain,
            false => Style::Notable,
        };
        let mut cells = vec![
            Cell::number(self.meshed()).style(style),
            golden.success_cell(),
            golden.rps_cell("rps"),
        ];
        cells.extend(golden.latency_cells());
        cells.push(match self.meshed {
            0 => Cell::number("-"),
            _ => Cell::number(self.open),
        });
        cells
    }

    fn bytes(&self, seconds: f64) -> [Cell; 2] {
        [self.read, self.written].map(|bytes| match self.meshed {
            0 => Cell::number("-"),
            _ => Cell::number(format!("{:.1}B/s", bytes / seconds.max(0.001))),
        })
    }
}

#[cfg(test)]
mod tests;

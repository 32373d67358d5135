// SPDX-License-Identifier: Apache-2.0
//! The table of it.

use serde::Serialize;

use super::{Way, load::Run};

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How often each load was run each way.
    pub rounds: usize,
    /// For how long each time.
    pub seconds: u64,
    /// Of how many CPUs.
    pub cpus: usize,
    /// What else the machine did before, as /proc/loadavg has it.
    pub load_before: String,
    /// Whether the proxies counted the requests: if not, they carried opaque TCP.
    pub layer7: bool,
    /// The memory of the proxies before, in MiB.
    pub resident_mib_before: [f64; 2],
    /// After all of it.
    pub resident_mib_after: [f64; 2],
    /// A row for each load.
    pub rows: Vec<Row>,
}

/// One load.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub load: &'static str,
    /// The runs beside the mesh.
    pub direct: Vec<Run>,
    /// The runs through it.
    pub mesh: Vec<Run>,
    /// The mesh's medians divided by the others.
    pub ratio: Ratio,
}

/// Medians of the mesh as multiples of those beside it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Ratio {
    rate: f64,
    p50: f64,
    p99: f64,
}

// === impl Report ===

impl Report {
    /// For people.
    pub fn render(&self) -> String {
        let mut text = format!(
            "{:<37}{:>21}{:>29}{:>26}{:>12}\n",
            "", "direct", "mesh", "mesh/direct", "CPU s per"
        );
        text += &format!(
            "{:<37}{:>9}{:>9}{:>9}{:>11}{:>9}{:>9}{:>11}{:>7}{:>7}{:>12}\n",
            "LOAD", "REQ/S", "P50", "P99", "REQ/S", "P50", "P99", "REQ/S", "P50", "P99", "100k REQ"
        );
        text.extend(self.rows.iter().map(Row::render));
        let [n1, n2] = self.resident_mib_after;
        let [b1, b2] = self.resident_mib_before;
        text += &format!(
            "\nMedians of {} runs of {} s on {} CPUs, shared by client, server and both proxies. P50 and P99 in ms.\n\
             CPU is that of both proxies. Memory of the proxies: {n1:.1} and {n2:.1} MiB, before {b1:.1} and {b2:.1} MiB.\n\
             The machine's load before: {}\n",
            self.rounds, self.seconds, self.cpus, self.load_before
        );
        if !self.layer7 {
            text += "The proxies counted no request: they carried opaque TCP.\n";
        }
        text
    }
}

// === impl Row ===

impl Row {
    /// Of a load that has not been run.
    pub fn new(load: &'static str) -> Self {
        Self {
            load,
            direct: Vec::new(),
            mesh: Vec::new(),
            ratio: Ratio::default(),
        }
    }

    /// The runs of one way.
    pub fn runs(&mut self, way: Way) -> &mut Vec<Run> {
        match way {
            Way::Direct => &mut self.direct,
            Way::Mesh => &mut self.mesh,
        }
    }

    /// Compares the medians.
    pub fn compare(&mut self) {
        let (direct, mesh) = (median(&self.direct), median(&self.mesh));
        self.ratio = Ratio {
            rate: mesh.rate / direct.rate,
            p50: mesh.p50_us / direct.p50_us,
            p99: mesh.p99_us / direct.p99_us,
        };
    }

    fn render(&self) -> String {
        let (direct, mesh) = (median(&self.direct), median(&self.mesh));
        let Ratio { rate, p50, p99 } = self.ratio;
        let run = |run: Run| {
            let [p50, p99] = [run.p50_us, run.p99_us].map(|micros| micros / 1e3);
            (run.rate, p50, p99)
        };
        let ((rate_d, p50_d, p99_d), (rate_m, p50_m, p99_m)) = (run(direct), run(mesh));
        format!(
            "{:<37}{rate_d:>9.0}{p50_d:>9.3}{p99_d:>9.3}{rate_m:>11.0}{p50_m:>9.3}{p99_m:>9.3}\
             {rate:>11.2}{p50:>7.1}{p99:>7.1}{:>12.2}\n",
            self.load, mesh.cpu_per_100k
        )
    }
}

/// Of each number by itself.
fn median(runs: &[Run]) -> Run {
    let of = |number: fn(&Run) -> f64| {
        let mut all: Vec<_> = runs.iter().map(number).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Run {
        requests: runs.iter().map(|run| run.requests).sum(),
        rate: of(|run| run.rate),
        p50_us: of(|run| run.p50_us),
        p99_us: of(|run| run.p99_us),
        cpu_per_100k: of(|run| run.cpu_per_100k),
    }
}

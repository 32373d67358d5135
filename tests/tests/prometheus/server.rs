// SPDX-License-Identifier: Apache-2.0
//! A Prometheus on the first node, which scrapes the proxies of both.

use std::{cell::Cell, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    process::{Running, run},
    sandbox::Sandbox,
    wait::wait_for,
};
use serde_json::Value;

const LISTEN: &str = "127.0.0.1:9090";
const PATIENCE: Duration = Duration::from_secs(30);

/// It ends with this.
#[derive(Debug)]
pub struct Prometheus {
    netns: String,
    /// When queries are evaluated, in seconds of Unix; now if none.
    at: Cell<Option<f64>>,
    _running: Running,
}

// === impl Prometheus ===

impl Prometheus {
    /// Starts it with a scrape each second. Its files are in a directory of the test's.
    pub fn start(sandbox: &Sandbox, files: &Path) -> anyhow::Result<Self> {
        let status = sandbox.status()?;
        let nodes = status["nodes"].as_array().context("no nodes")?;
        let ips = nodes.iter().filter_map(|node| node["ip"].as_str());
        let targets: Vec<_> = ips.map(|ip| format!("{ip}:4191")).collect();
        let config = files.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             scrape_configs: [{{job_name: proxies, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        fs::write(&config, text)?;
        let netns = sandbox.node("n1").path().display().to_string();
        let mut command = inside(&netns, "prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                files.join("data").display()
            ))
            .arg(format!("--web.listen-address={LISTEN}"))
            .arg("--log.level=warn");
        let running = Running::start(&mut command)?;
        let at = Cell::new(None);
        let _running = running;
        let prometheus = Self {
            netns,
            at,
            _running,
        };
        wait_for("Prometheus to answer", PATIENCE, || {
            prometheus.value("vector(1)")
        })?;
        Ok(prometheus)
    }

    /// Waits until so many targets were scraped, and fails if a sample of theirs was refused.
    pub fn targets_are_up(&self, count: u32) -> anyhow::Result<()> {
        let up = format!("sum(up{{job=\"proxies\"}}) == {count}");
        wait_for(&up, PATIENCE, || self.value(&up))?;
        let kept = "sum(scrape_samples_post_metric_relabeling - scrape_samples_scraped)";
        let differ = self.value(kept)?;
        ensure!(differ == 0.0, "{differ} samples were refused");
        Ok(())
    }

    /// From now on queries are evaluated as of now.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.at.set(Some(self.value("time()")?));
        Ok(())
    }

    /// Queries are evaluated when they are asked again.
    pub fn thaw(&self) {
        self.at.set(None);
    }

    /// The one value that a query has.
    pub fn value(&self, query: &str) -> anyhow::Result<f64> {
        let mut curl = inside(&self.netns, "curl");
        curl.args(["-sS", "--max-time", "10", "-G"])
            .arg(format!("http://{LISTEN}/api/v1/query"))
            .args(["--data-urlencode", &format!("query={query}")]);
        if let Some(at) = self.at.get() {
            curl.args(["--data-urlencode", &format!("time={at}")]);
        }
        let said: Value = run(&mut curl, PATIENCE)?.json()?;
        ensure!(said["status"] == "success", "{query}: {said}");
        let result = &said["data"]["result"];
        let value = match result.as_array().map(Vec::as_slice) {
            Some([one]) if one.is_object() => &one["value"][1],
            // A scalar is a time and a value.
            Some([_, value]) if value.is_string() => value,
            _ => anyhow::bail!("{query} has not one value but {result}"),
        };
        Ok(value.as_str().context("no value")?.parse()?)
    }
}

/// A program in a network namespace, in this process' file system.
fn inside(netns: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={netns}")).arg(program);
    command
}

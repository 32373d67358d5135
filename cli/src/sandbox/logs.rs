// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox logs`.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{
    error::{Doing, Error, Result},
    layout::{Layout, MAX_NODES, NodeId},
    names::{self, Candidate},
};
use crate::{args::Logs, output};

const POLL: Duration = Duration::from_millis(200);
const CHUNK: usize = 64 << 10;

/// A log that is read to its end, again and again.
struct Log {
    title: String,
    path: PathBuf,
    file: Option<File>,
}

/// Runs the command.
pub fn run(args: Logs) -> Result<()> {
    let layout = Layout::new(args.target.name.clone());
    if !layout.root().exists() {
        let name = layout.name.to_string();
        return Err(Error::NotRunning {
            name,
            leftovers: false,
        });
    }
    let mut logs = find(&layout, &args)?;
    let mut last = None;
    loop {
        let titled = logs.len() > 1;
        for (nth, log) in logs.iter_mut().enumerate() {
            let shown = log.show(titled && last != Some(nth));
            if shown.doing(|| format!("read {}", log.path.display()))? {
                last = Some(nth);
            }
        }
        if !args.follow {
            return Ok(());
        }
        thread::sleep(POLL);
    }
}

fn find(layout: &Layout, args: &Logs) -> Result<Vec<Log>> {
    match args.of.as_str() {
        "supervisor" => Ok(vec![Log::new("supervisor", layout.supervisor_log())]),
        "control" => Ok(vec![Log::new("control", layout.daemon_log("control"))]),
        kind @ ("agent" | "proxy") => of_nodes(layout, kind, args.node),
        pod => of_pod(layout, pod, args.container.as_deref()),
    }
}

fn of_nodes(layout: &Layout, kind: &str, node: Option<NodeId>) -> Result<Vec<Log>> {
    let nodes = NodeId::first(MAX_NODES).filter(|id| node.is_none_or(|node| node == *id));
    let logs = nodes.map(|node| {
        let name = format!("{node}-{kind}");
        Log::new(&name, layout.daemon_log(&name))
    });
    let logs: Vec<_> = logs.filter(|log| log.path.exists()).collect();
    if logs.is_empty() {
        return Err(Error::Usage(format!("no {kind} has a log on such a node")));
    }
    Ok(logs)
}

/// Pods that are gone have logs too, so they are looked for on disk.
fn of_pod(layout: &Layout, pod: &str, container: Option<&str>) -> Result<Vec<Log>> {
    let dir = layout.logs().join("pods");
    let candidates = names_in(&dir).doing(|| format!("list {}", dir.display()))?;
    let candidates = candidates.iter().filter_map(|name| {
        let (namespace, name) = name.split_once('.')?;
        Some(Candidate {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            deployment: None,
        })
    });
    let found = names::find(pod, candidates.collect()).map_err(Error::Usage)?;
    let dir = layout.pod_logs(&found.namespace, &found.name);
    let containers = names_in(&dir).doing(|| format!("list {}", dir.display()))?;
    let containers = containers
        .iter()
        .filter_map(|file| file.strip_suffix(".log"));
    let containers = containers.filter(|name| container.is_none_or(|wanted| wanted == *name));
    let logs: Vec<_> = containers
        .map(|name| Log::new(name, dir.join(format!("{name}.log"))))
        .collect();
    if logs.is_empty() {
        return Err(Error::Usage(format!(
            "the pod {pod} has no such container, or it never started"
        )));
    }
    Ok(logs)
}

fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
    let mut names: Vec<_> = entries
        .map(name)
        .filter_map(Result::transpose)
        .collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}

// === impl Log ===

impl Log {
    fn new(title: &str, path: PathBuf) -> Self {
        Self {
            title: title.to_owned(),
            path,
            file: None,
        }
    }

    /// Prints what is new. Says whether there was anything.
    fn show(&mut self, titled: bool) -> io::Result<bool> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                file => Some(file?),
            };
        }
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let mut bytes = Vec::with_capacity(CHUNK);
        file.read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let title = if titled {
            format!("==> {} <==\n", self.title)
        } else {
            String::new()
        };
        output::print(&(title + &String::from_utf8_lossy(&bytes)))?;
        Ok(true)
    }
}

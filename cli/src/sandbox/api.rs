// SPDX-License-Identifier: Apache-2.0
//! What commands and the supervisor say to each other over a Unix socket: one JSON request, one JSON
//! answer, each on a line of its own.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    daemon::DaemonStatus,
    error::{Doing, Error, Result},
    families::IpFamilies,
    layout::Layout,
    options::Options,
};

/// How long the supervisor may take: `down` ends every pod and every process.
const PATIENCE: Duration = Duration::from_secs(90);

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How is everything?
    Status,
    /// Be like this from now on.
    Apply {
        /// Like what.
        options: Options,
    },
    /// Kill a process.
    Kill {
        /// Which.
        process: ProcessName,
        /// With which signal, as a number.
        signal: i32,
        /// Whether it stays down.
        hold: bool,
    },
    /// Start a process that was held down.
    Start {
        /// Which.
        process: ProcessName,
    },
    /// Reboot a node.
    Reboot {
        /// Which, from 1.
        node: u8,
    },
    /// How is this pod entered?
    Enter {
        /// `name`, `namespace/name` or a prefix at a dash.
        pod: String,
        /// The container, if not the first.
        container: Option<String>,
    },
    /// End everything.
    Down,
}

/// One of Culvert's processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    /// `control`, `agent` or `proxy`.
    pub kind: String,
    /// The node; every node if none.
    pub node: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// How everything is.
    Status {
        /// How.
        status: Box<Status>,
    },
    /// How a pod is entered.
    Enter {
        /// How.
        entrance: Entrance,
    },
    /// It can't be done.
    Refused {
        /// Why.
        reason: String,
        /// Whether the request itself is wrong.
        usage: bool,
    },
}

/// How a process joins a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entrance {
    /// A process in its namespaces.
    pub pid: i32,
    /// The directory of its cgroup.
    pub cgroup: String,
    /// The environment of its container.
    pub env: Vec<(String, String)>,
}

/// How a sandbox is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its directory of manifests.
    pub dir: String,
    /// The address families of its pods and services.
    pub ip_families: IpFamilies,
    /// Whether all that is wanted is ready.
    pub ready: bool,
    /// The supervisor's process.
    pub supervisor_pid: u32,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// Culvert's processes.
    pub processes: Vec<DaemonStatus>,
    /// Its pods.
    pub pods: Vec<PodView>,
    /// Its services.
    pub services: Vec<ServiceView>,
    /// What is wrong with manifests, and what of them has no effect.
    pub problems: Vec<Problem>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its first address on the fabric.
    pub ip: String,
    /// Its addresses on the fabric, one of each family.
    pub ips: Vec<String>,
    /// The first network of its pods.
    pub pod_network: String,
    /// The networks of its pods, one of each family.
    pub pod_networks: Vec<String>,
    /// Its network namespace.
    pub netns: String,
    /// The cgroup of its pods, its agent and its proxy.
    pub cgroup: String,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its uid.
    pub uid: String,
    /// Its first address, once it has one.
    pub ip: Option<String>,
    /// Its addresses, one of each family.
    pub ips: Vec<String>,
    /// Kubernetes' word for how far it is.
    pub phase: String,
    /// Whether it may get traffic.
    pub ready: bool,
    /// Why it is not ready.
    pub reason: String,
    /// Whether the node's agent steers it.
    pub meshed: bool,
    /// `permissive` or `strict`.
    pub policy: String,
    /// How often its containers were started again.
    pub restarts: i32,
    /// Whether it is ending.
    pub terminating: bool,
    /// The deployment that it is of.
    pub deployment: Option<String>,
    /// Its ServiceAccount.
    pub service_account: String,
    /// Its network namespace.
    pub netns: String,
    /// Its cgroup.
    pub cgroup: String,
    /// The processes of its containers that run.
    pub pids: Vec<i32>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its first address, or `None`.
    pub cluster_ip: String,
    /// Its addresses, one of each of its families, or `None`.
    pub cluster_ips: Vec<String>,
    /// Its ports.
    pub ports: Vec<i32>,
}

/// What is wrong with a manifest, or has no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Whether the object or file is not carried out.
    pub refused: bool,
    /// `file:line`, or the object.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

/// Asks the supervisor. Blocks.
pub fn ask(layout: &Layout, request: &Request) -> Result<Answer> {
    let stream = match UnixStream::connect(layout.socket()) {
        Ok(stream) => stream,
        Err(error) if is_away(&error) => return Err(not_running(layout)),
        Err(error) => return Err(error).doing(|| "reach the sandbox's supervisor".into()),
    };
    let answer = match exchange(stream, request) {
        Err(error) if is_away(&error) => return Err(not_running(layout)),
        answer => answer.doing(|| "talk to the sandbox's supervisor".into())?,
    };
    match answer {
        Answer::Refused {
            reason,
            usage: true,
        } => Err(Error::Usage(reason)),
        Answer::Refused { reason, .. } => Err(Error::Supervisor(reason)),
        answer => Ok(answer),
    }
}

/// Asks how everything is.
pub fn ask_status(layout: &Layout) -> Result<Status> {
    match ask(layout, &Request::Status)? {
        Answer::Status { status } => Ok(*status),
        other => Err(Error::Supervisor(format!(
            "the supervisor answered {other:?}"
        ))),
    }
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it ended without an answer",
        ));
    }
    Ok(serde_json::from_str(&answer)?)
}

/// It was never there, or it ended, perhaps just now.
fn is_away(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(
        error.kind(),
        NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof
    )
}

fn not_running(layout: &Layout) -> Error {
    Error::NotRunning {
        name: layout.name.to_string(),
        leftovers: layout.root().exists(),
    }
}

// === impl Status ===

impl Status {
    /// What is not ready, and why.
    pub fn waiting_for(&self) -> Vec<String> {
        let processes = self
            .processes
            .iter()
            .filter(|process| !process.ready && !process.held);
        let processes = processes.map(|process| {
            format!(
                "{}: {} (see {})",
                process.name(),
                process.reason,
                process.log
            )
        });
        let pods = self
            .pods
            .iter()
            .filter(|pod| pod.is_awaited())
            .map(|pod| format!("pod {}/{}: {}", pod.namespace, pod.name, pod.reason));
        let problems = self.problems.iter().filter(|problem| problem.refused);
        let problems = problems.map(|problem| format!("{}: {}", problem.place, problem.reason));
        processes.chain(pods).chain(problems).collect()
    }
}

impl PodView {
    fn is_awaited(&self) -> bool {
        self.terminating || (!self.ready && self.phase != "Succeeded")
    }
}

impl DaemonStatus {
    /// How people call it.
    pub fn name(&self) -> String {
        match &self.node {
            Some(node) => format!("{} of {node}", self.kind),
            None => self.kind.clone(),
        }
    }
}

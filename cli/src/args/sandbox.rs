// SPDX-License-Identifier: Apache-2.0
//! `culvert sandbox` as it is written.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use crate::sandbox::{
    families::IpFamilies,
    layout::{Name, NodeId},
    stat::Resource,
};

/// Sandbox commands.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    culvert sandbox demo                          see it work, in half a minute\n  \
    culvert sandbox up -f examples/demo           start your own manifests, on two nodes\n  \
    culvert sandbox status                        what runs, and what is wrong\n  \
    culvert sandbox stat                          success rates and latencies\n  \
    culvert sandbox exec traffic -- ss -tn        run a program in a pod\n  \
    culvert sandbox down                          remove everything")]
pub struct Sandbox {
    /// What to do.
    #[command(subcommand)]
    pub command: SandboxCommand,
}

/// Sandbox commands.
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Start a sandbox, or bring a running one to other manifests or nodes
    ///
    /// DIR holds ordinary Kubernetes manifests: Namespace, ServiceAccount, Service, Pod, Deployment.
    /// A container's command runs as a process of this machine, as root and on its file system, in the
    /// pod's network namespace; its image is ignored. Changes in DIR are applied live. Returns when
    /// everything is ready, or says what is not.
    Up(Up),
    /// Remove a sandbox with everything in it
    ///
    /// Also when its supervisor was killed. What is gone already is fine.
    Down(Target),
    /// Show nodes, processes, pods and problems
    Status(Status),
    /// Show success rates, request rates and latencies
    ///
    /// Looks at the metrics of every node's proxy twice, and tells what pods answered in between. A
    /// request is counted where it arrives, whoever sent it; it was successful unless its status is
    /// 5xx, or its gRPC status says that the server failed. Latencies last until the response's body
    /// begins, estimated within the buckets of Linkerd's histogram. What is not HTTP has no success
    /// rate: its connections and bytes are counted.
    #[command(after_help = "Examples:\n  \
        culvert sandbox stat                          all deployments, and pods without one\n  \
        culvert sandbox stat deploy/web -t 1m         one of them, for longer\n  \
        culvert sandbox stat pods -n demo -o wide     with bytes per second\n  \
        culvert sandbox stat sa -o json               per identity, for programs")]
    Stat(Stat),
    /// Run a command in a pod
    ///
    /// The command joins the pod's network, mounts and cgroup, with the container's environment, and
    /// its exit status is passed on.
    #[command(after_help = "Examples:\n  \
        culvert sandbox exec traffic -- ss -tn\n  \
        culvert sandbox exec shop/db-6d8f9c7b4x-w5k2p -- sh -c 'echo $HOSTNAME'")]
    Exec(Exec),
    /// Show what a pod, or one of Culvert's own processes, wrote
    #[command(after_help = "Examples:\n  \
        culvert sandbox logs traffic\n  \
        culvert sandbox logs -f proxy --node n2\n  \
        culvert sandbox logs control")]
    Logs(Logs),
    /// Run a demonstration: three services, two nodes, traffic, and a proof that it is encrypted
    ///
    /// Starts a sandbox of its own with web, api and db, two replicas each, and a traffic generator;
    /// shows what flows between which identities; captures on the link between the nodes and searches
    /// every byte for what the applications sent. A pair of unmeshed pods that send plaintext over
    /// the same link shows that the search finds what is there. Exits 0, or says what failed.
    Demo(Demo),
    /// Kill one of Culvert's own processes (for tests)
    #[command(hide = true)]
    Kill(Kill),
    /// Start one of Culvert's own processes that was held down (for tests)
    #[command(hide = true)]
    Start(Start),
    /// Reboot a node: all of it is gone but its disk (for tests)
    #[command(hide = true)]
    Reboot(Reboot),
    /// The process that keeps a sandbox
    #[command(hide = true)]
    Supervise(Target),
    /// The programs of the demonstration
    #[command(hide = true)]
    DemoApp {
        /// Which of them.
        #[command(subcommand)]
        app: DemoApp,
    },
}

/// Which sandbox.
#[derive(Clone, Debug, Args)]
pub struct Target {
    /// The sandbox's name; several may run at once.
    #[arg(long, default_value = "default", env = "CULVERT_SANDBOX")]
    pub name: Name,
}

/// How sandboxes are started.
#[derive(Clone, Debug, Args)]
pub struct StartOptions {
    /// Where culvert-agent, culvert-proxy, culvert-control and culvert-cni are; beside this program
    /// by default.
    #[arg(long, value_name = "DIR", env = "CULVERT_BIN_DIR")]
    pub bin_dir: Option<PathBuf>,
    /// The address families of nodes, pods and services: IPv4,IPv6 or IPv6,IPv4, the first being
    /// what a service gets that asks for none, or IPv4 or IPv6 alone. By default IPv4,IPv6, and
    /// IPv4 where the kernel has no IPv6.
    #[arg(long, value_name = "FAMILIES")]
    pub ip_families: Option<IpFamilies>,
    /// The log level of Culvert's own processes.
    #[arg(
        long,
        default_value = "info",
        value_name = "LEVEL",
        env = "CULVERT_SANDBOX_LOG"
    )]
    pub log: String,
    /// One more argument for control; may be repeated.
    #[arg(
        long,
        value_name = "ARG",
        allow_hyphen_values = true,
        hide_short_help = true
    )]
    pub control_arg: Vec<String>,
    /// One more argument for every agent; may be repeated.
    #[arg(
        long,
        value_name = "ARG",
        allow_hyphen_values = true,
        hide_short_help = true
    )]
    pub agent_arg: Vec<String>,
    /// One more argument for every proxy; may be repeated.
    #[arg(
        long,
        value_name = "ARG",
        allow_hyphen_values = true,
        hide_short_help = true
    )]
    pub proxy_arg: Vec<String>,
}

/// `sandbox up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    culvert sandbox up -f examples/demo\n  \
    culvert sandbox up -f . --nodes 3 --name test\n  \
    culvert sandbox up -f . --ip-families IPv6\n  \
    culvert sandbox up -f . --proxy-arg=--access-log=json")]
pub struct Up {
    /// The directory of manifests (*.yaml, *.yml, *.json).
    #[arg(short = 'f', long = "filename", value_name = "DIR")]
    pub dir: PathBuf,
    /// How many nodes, named n1, n2 and so on.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub nodes: u8,
    /// Which sandbox.
    #[command(flatten)]
    pub target: Target,
    /// How long to wait until everything is ready, e.g. 90s or 2m; 0s does not wait.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// How it is started.
    #[command(flatten)]
    pub start: StartOptions,
}

/// `sandbox status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Which sandbox.
    #[command(flatten)]
    pub target: Target,
    /// How to print it.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// `sandbox stat`.
#[derive(Debug, Args)]
pub struct Stat {
    /// What to show: all, deploy, po, sa or ns, or one of them as deploy/NAME.
    #[arg(value_name = "KIND[/NAME]", default_value = "all")]
    pub resource: Resource,
    /// Only this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// How long to look, e.g. 30s or 1m.
    #[arg(short, long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub time_window: Duration,
    /// How to print it; wide has bytes per second, too.
    #[arg(short, long, default_value = "table")]
    pub output: StatFormat,
    /// Which sandbox.
    #[command(flatten)]
    pub target: Target,
}

/// How to print statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatFormat {
    /// For people.
    Table,
    /// For people with a wide screen.
    Wide,
    /// For programs.
    Json,
}

/// How to print a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `sandbox exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// The pod: its name, namespace/name, its deployment's name, or the beginning of its name.
    pub pod: String,
    /// The container, if not the first.
    #[arg(short, long)]
    pub container: Option<String>,
    /// Which sandbox.
    #[command(flatten)]
    pub target: Target,
    /// The command and its arguments, after --.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

/// `sandbox logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// A pod, or `control`, `agent`, `proxy` or `supervisor`.
    #[arg(value_name = "POD|agent|proxy|control")]
    pub of: String,
    /// Go on as more is written.
    #[arg(short, long)]
    pub follow: bool,
    /// The node of the agent or proxy; every node by default.
    #[arg(long)]
    pub node: Option<NodeId>,
    /// The container of the pod; every container by default.
    #[arg(short, long)]
    pub container: Option<String>,
    /// Which sandbox.
    #[command(flatten)]
    pub target: Target,
}

/// `sandbox demo`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    culvert sandbox demo\n  \
    culvert sandbox demo --time 5s -o json\n  \
    culvert sandbox demo --keep        and look around with status, exec and logs --name demo")]
pub struct Demo {
    /// How long to watch the traffic.
    #[arg(long, default_value = "20s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub time: Duration,
    /// How to print what was seen.
    #[arg(short, long, default_value = "table")]
    pub output: Format,
    /// Leave the sandbox running.
    #[arg(long)]
    pub keep: bool,
    /// The sandbox's name.
    #[arg(long, default_value = "demo")]
    pub name: Name,
    /// How it is started.
    #[command(flatten)]
    pub start: StartOptions,
}

/// `sandbox kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// Which process.
    #[command(flatten)]
    pub process: Process,
    /// The signal, by name or number.
    #[arg(long, default_value = "KILL")]
    pub signal: String,
    /// Keep it down until `sandbox start`.
    #[arg(long)]
    pub hold: bool,
}

/// `sandbox start`.
#[derive(Debug, Args)]
pub struct Start {
    /// Which process.
    #[command(flatten)]
    pub process: Process,
}

/// `sandbox reboot`.
#[derive(Debug, Args)]
pub struct Reboot {
    /// Which node.
    pub node: NodeId,
    /// Whose.
    #[command(flatten)]
    pub target: Target,
}

/// One of Culvert's own processes.
#[derive(Debug, Args)]
pub struct Process {
    /// Its kind.
    pub kind: Kind,
    /// Its node; every node by default.
    #[arg(long)]
    pub node: Option<NodeId>,
    /// Which sandbox.
    #[command(flatten)]
    pub target: Target,
}

/// Culvert's own processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// culvert-agent.
    Agent,
    /// culvert-proxy.
    Proxy,
    /// culvert-control.
    Control,
}

/// The programs of the demonstration. They know nothing of the mesh.
#[derive(Debug, Subcommand)]
pub enum DemoApp {
    /// Answers each request with a line, after asking an upstream if there is one.
    Server(DemoServer),
    /// Sends requests, one after the other on one connection.
    Client {
        /// Whom to ask, as host:port, or grpc://host:port.
        #[arg(long)]
        target: String,
        /// What each request holds.
        #[arg(long)]
        payload: String,
        /// How long to wait between requests.
        #[arg(long, default_value = "25ms", value_parser = humantime::parse_duration)]
        interval: Duration,
    },
}

/// `sandbox demo-app server`.
#[derive(Debug, Args)]
pub struct DemoServer {
    /// The port to listen on.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Whom to ask for each request, as host:port, or grpc://host:port.
    #[arg(long)]
    pub upstream: Option<String>,
    /// Serve gRPC, not HTTP/1.1.
    #[arg(long)]
    pub grpc: bool,
    /// How long an answer takes; one in ten takes ten times as long.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub latency: Duration,
    /// Fail one in so many requests; none if 0.
    #[arg(long, default_value_t = 0)]
    pub fail_one_in: u64,
}

impl Kind {
    /// Its name in the supervisor's protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Proxy => "proxy",
            Self::Control => "control",
        }
    }
}

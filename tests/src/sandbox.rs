// SPDX-License-Identifier: Apache-2.0
//! A sandbox of the test's own, made and driven by the real `culvert` binary.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    app::report::Report,
    binaries,
    manifests::{NAMESPACE, Pod},
    metrics::{self, Scrape},
    netns::Netns,
    process::{Output, Running, run},
    wait::wait_for,
};

mod addresses;
pub mod leftovers;

/// The directory of all sandboxes.
const ROOT: &str = "/run/culvert/sandbox";
/// What one command in a pod may take unless more is said.
const PATIENCE: Duration = Duration::from_secs(60);
/// Set to keep a sandbox when its test is over.
const KEEP: &str = "CULVERT_KEEP";

/// Where a daemon's admin server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon<'a> {
    /// The agent of a node.
    Agent(&'a str),
    /// The proxy of a node.
    Proxy(&'a str),
    /// Control.
    Control,
}

/// A sandbox that runs. It is taken down when dropped.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    culvert: PathBuf,
    testapp: PathBuf,
    manifests: TempDir,
    down: bool,
}

/// What a sandbox starts with.
#[derive(Debug)]
pub struct Plan {
    name: String,
    testapp: PathBuf,
    manifests: TempDir,
    nodes: u8,
    flags: Vec<String>,
}

// === impl Plan ===

impl Plan {
    /// A sandbox `t<pid>-<name>` of two nodes without pods.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        leftovers::collect_dead()?;
        Ok(Self {
            name: format!("t{}-{name}", process::id()),
            testapp: binaries::testapp()?,
            manifests: TempDir::with_prefix(format!("culvert-{name}-"))?,
            nodes: 2,
            flags: Vec::new(),
        })
    }

    /// Where `culvert-testapp` is.
    pub fn testapp(&self) -> &Path {
        &self.testapp
    }

    /// Another number of nodes.
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// A further flag of `culvert sandbox up`.
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// With a pod that serves.
    pub fn pod(self, pod: &Pod) -> anyhow::Result<Self> {
        write_pod(self.manifests.path(), pod)?;
        Ok(self)
    }

    /// With any object.
    pub fn object(self, object: &Value) -> anyhow::Result<Self> {
        write(self.manifests.path(), &file_name(object), object)?;
        Ok(self)
    }

    /// Brings it up.
    pub fn up(self) -> anyhow::Result<Sandbox> {
        let sandbox = Sandbox {
            name: self.name,
            culvert: binaries::product("culvert")?,
            testapp: self.testapp,
            manifests: self.manifests,
            down: false,
        };
        let nodes = self.nodes.to_string();
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        let mut args = vec!["-f", sandbox.dir_text()?, "--nodes", &nodes];
        args.extend(flags);
        let up = sandbox.sandbox("up", &args).and_then(Output::ok);
        if up.is_err() {
            sandbox.print_logs();
        }
        up.context("bring the sandbox up")?;
        Ok(sandbox)
    }
}

// === impl Sandbox ===

impl Sandbox {
    /// Its name, which is in the name of everything that it makes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where `culvert-testapp` is.
    pub fn testapp(&self) -> &Path {
        &self.testapp
    }

    /// The directory of manifests, which is watched.
    pub fn dir(&self) -> &Path {
        self.manifests.path()
    }

    fn dir_text(&self) -> anyhow::Result<&str> {
        self.dir()
            .to_str()
            .context("the directory's name is no UTF-8")
    }

    /// Runs `culvert sandbox COMMAND --name NAME ARGS`.
    pub fn sandbox(&self, command: &str, args: &[&str]) -> anyhow::Result<Output> {
        run(self.command(command).args(args), Duration::from_secs(120))
    }

    fn command(&self, command: &str) -> Command {
        let mut culvert = Command::new(&self.culvert);
        culvert.args(["sandbox", command, "--name", &self.name]);
        culvert
    }

    /// Adds or changes a pod.
    pub fn apply(&self, pod: &Pod) -> anyhow::Result<()> {
        write_pod(self.dir(), pod)
    }

    /// Adds or changes any object.
    pub fn apply_object(&self, object: &Value) -> anyhow::Result<()> {
        write(self.dir(), &file_name(object), object)
    }

    /// Writes any text as a manifest.
    pub fn apply_text(&self, file: &str, text: &str) -> anyhow::Result<()> {
        replace(&self.dir().join(file), text)
    }

    /// Deletes a pod.
    pub fn delete_pod(&self, name: &str) -> anyhow::Result<()> {
        Ok(fs::remove_file(
            self.dir().join(format!("pod-{name}.json")),
        )?)
    }

    /// Runs a program in a pod to its end.
    pub fn exec(&self, pod: &str, command: &[&str]) -> anyhow::Result<Output> {
        self.exec_for(PATIENCE, pod, command)
    }

    /// Runs a program in a pod that may take longer.
    pub fn exec_for(
        &self,
        patience: Duration,
        pod: &str,
        command: &[&str],
    ) -> anyhow::Result<Output> {
        run(&mut self.exec_command(pod, command), patience)
    }

    /// Starts a program in a pod.
    pub fn spawn(&self, pod: &str, command: &[&str]) -> anyhow::Result<Running> {
        Running::start(&mut self.exec_command(pod, command))
    }

    fn exec_command(&self, pod: &str, command: &[&str]) -> Command {
        let mut exec = self.command("exec");
        exec.arg(pod).arg("--").args(command);
        exec
    }

    /// Runs `culvert-testapp connect` in a pod.
    pub fn connect(&self, pod: &str, target: &str, flags: &[&str]) -> anyhow::Result<Report> {
        self.connect_for(PATIENCE, pod, target, flags)
    }

    /// Runs `culvert-testapp connect` in a pod for longer.
    pub fn connect_for(
        &self,
        patience: Duration,
        pod: &str,
        target: &str,
        flags: &[&str],
    ) -> anyhow::Result<Report> {
        let command = self.testapp_command(&["connect", target], flags)?;
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        self.exec_for(patience, pod, &command)?.json()
    }

    /// Starts `culvert-testapp` in a pod.
    pub fn spawn_app(&self, pod: &str, args: &[&str]) -> anyhow::Result<Running> {
        let command = self.testapp_command(args, &[])?;
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        self.spawn(pod, &command)
    }

    fn testapp_command(&self, args: &[&str], flags: &[&str]) -> anyhow::Result<Vec<String>> {
        let testapp = self.testapp.to_str().context("the path is no UTF-8")?;
        let all = [testapp]
            .into_iter()
            .chain(args.iter().copied())
            .chain(flags.iter().copied());
        Ok(all.map(str::to_owned).collect())
    }

    /// What a pod or process has logged.
    pub fn logs(&self, of: &str) -> anyhow::Result<String> {
        Ok(self.sandbox("logs", &[of])?.ok()?.stdout)
    }

    /// Kills a process: `agent`, `proxy` or `control`. With `hold` it stays dead.
    pub fn kill(&self, process: &str, node: Option<&str>, hold: bool) -> anyhow::Result<()> {
        self.signal(process, node, "KILL", hold)
    }

    /// Asks a process to end, which is started again.
    pub fn terminate(&self, process: &str, node: Option<&str>) -> anyhow::Result<()> {
        self.signal(process, node, "TERM", false)
    }

    /// Stops a process where it is (SIGSTOP).
    pub fn stall(&self, process: &str, node: Option<&str>) -> anyhow::Result<()> {
        self.signal(process, node, "STOP", false)
    }

    /// Lets a stopped process go on.
    pub fn unstall(&self, process: &str, node: Option<&str>) -> anyhow::Result<()> {
        self.signal(process, node, "CONT", false)
    }

    /// Reboots a node: all of it is gone but its disk.
    pub fn reboot(&self, node: &str) -> anyhow::Result<()> {
        self.sandbox("reboot", &[node])?.ok()?;
        Ok(())
    }

    fn signal(
        &self,
        process: &str,
        node: Option<&str>,
        signal: &str,
        hold: bool,
    ) -> anyhow::Result<()> {
        let mut args = vec![process, "--signal", signal];
        args.extend(node.iter().flat_map(|node| ["--node", node]));
        args.extend(hold.then_some("--hold"));
        self.sandbox("kill", &args)?.ok()?;
        Ok(())
    }

    /// What the supervisor says, as JSON.
    pub fn status(&self) -> anyhow::Result<Value> {
        self.sandbox("status", &["-o", "json"])?.json()
    }

    /// The process id of a process that runs.
    pub fn pid(&self, of: Daemon<'_>) -> anyhow::Result<u64> {
        let (kind, node) = match of {
            Daemon::Agent(node) => ("agent", Value::from(node)),
            Daemon::Proxy(node) => ("proxy", Value::from(node)),
            Daemon::Control => ("control", Value::Null),
        };
        let status = self.status()?;
        let mut processes = status["processes"].as_array().into_iter().flatten();
        let found = processes.find(|one| one["kind"] == kind && one["node"] == node);
        let pid = found.and_then(|one| one["pid"].as_u64());
        pid.with_context(|| format!("{of:?} does not run"))
    }

    /// Waits until a process with this id has been replaced by one that is ready.
    pub fn replaced(&self, of: Daemon<'_>, pid: u64) -> anyhow::Result<()> {
        wait_for(&format!("another {of:?}"), Duration::from_secs(30), || {
            ensure!(self.pid(of)? != pid, "it is the same");
            Ok::<_, anyhow::Error>(())
        })?;
        self.ready(of)
    }

    /// Starts a process that was held.
    pub fn start(&self, process: &str, node: Option<&str>) -> anyhow::Result<()> {
        let mut args = vec![process];
        args.extend(node.iter().flat_map(|node| ["--node", node]));
        self.sandbox("start", &args)?.ok()?;
        Ok(())
    }

    /// The namespace of a node.
    pub fn node(&self, node: &str) -> Netns {
        Netns::named(&format!("cv-{}-{node}", self.name))
    }

    /// The namespace of a pod.
    pub fn pod(&self, pod: &str) -> Netns {
        Netns::named(&format!("cv-{}-{NAMESPACE}-{pod}", self.name))
    }

    /// Where the sandbox keeps its state.
    pub fn root(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// Where the state of a node is.
    pub fn node_root(&self, node: &str) -> PathBuf {
        self.root().join("nodes").join(node)
    }

    /// The metrics of a process.
    pub fn scrape(&self, of: Daemon<'_>) -> anyhow::Result<Scrape> {
        let (netns, addr) = self.admin(of);
        Scrape::of(&netns, addr)
    }

    /// The sum of the samples of a process that have the name and labels.
    pub fn metric(
        &self,
        of: Daemon<'_>,
        name: &str,
        labels: &[(&str, &str)],
    ) -> anyhow::Result<f64> {
        Ok(self.scrape(of)?.sum(name, labels))
    }

    /// Waits until a sum of samples is at least `least`.
    pub fn metric_reaches(
        &self,
        of: Daemon<'_>,
        name: &str,
        labels: &[(&str, &str)],
        least: f64,
    ) -> anyhow::Result<f64> {
        wait_for(
            &format!("{name}{labels:?} of {of:?} ≥ {least}"),
            Duration::from_secs(5),
            || {
                let scrape = self.scrape(of)?;
                let got = scrape.sum(name, labels);
                ensure!(got >= least, "got {got}; {}", scrape.nearest(name, labels));
                Ok::<_, anyhow::Error>(got)
            },
        )
    }

    /// Waits until a process says that it is ready.
    pub fn ready(&self, of: Daemon<'_>) -> anyhow::Result<()> {
        let (netns, addr) = self.admin(of);
        let what = format!("{of:?} to be ready");
        wait_for(&what, Duration::from_secs(20), || {
            metrics::get(&netns, addr, "/ready")
        })?;
        Ok(())
    }

    fn admin(&self, of: Daemon<'_>) -> (Netns, SocketAddr) {
        let (netns, port) = match of {
            Daemon::Agent(node) => (self.node(node), 9991),
            Daemon::Proxy(node) => (self.node(node), 4191),
            Daemon::Control => (self.node("control"), 9990),
        };
        (netns, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// Waits until the echo server of a pod answers another pod. The address is looked up each
    /// time: a pod that waits for its network may change it.
    pub fn answers(&self, from: &str, pod: &str, port: u16) -> anyhow::Result<()> {
        let what = format!("port {port} of {pod} to answer {from}");
        wait_for(&what, Duration::from_secs(20), || {
            self.connect(from, &self.at(pod, port)?, &[])?
                .all()
                .map(|_| ())
        })
    }

    /// Waits until the echo server at an address answers a pod.
    pub fn answers_at(&self, from: &str, at: &str) -> anyhow::Result<()> {
        let what = format!("{at} to answer {from}");
        wait_for(&what, Duration::from_secs(20), || {
            self.connect(from, at, &[])?.all().map(|_| ())
        })
    }

    /// Takes it down and checks that nothing is left.
    pub fn down(&mut self) -> anyhow::Result<()> {
        if self.down || env::var_os(KEEP).is_some() {
            return Ok(());
        }
        self.down = true;
        self.sandbox("down", &[])?.ok()?;
        leftovers::none(&self.name)
    }

    /// Prints the end of every log, for whoever reads why a test failed.
    pub fn print_logs(&self) {
        let _ = leftovers::print_logs(&self.root().join("logs"));
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            let message = format!("down of sandbox {}: {error:#}", self.name);
            match thread::panicking() {
                true => eprintln!("{message}"),
                false => panic!("{message}"),
            }
        }
    }
}

fn write_pod(dir: &Path, pod: &Pod) -> anyhow::Result<()> {
    for object in pod.objects() {
        write(dir, &file_name(&object), &object)?;
    }
    Ok(())
}

fn file_name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    format!(
        "{}-{}.json",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}

fn write(dir: &Path, file: &str, object: &Value) -> anyhow::Result<()> {
    replace(&dir.join(file), &serde_json::to_string_pretty(object)?)
}

/// Whoever watches the directory never reads half a file.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text)?;
    Ok(fs::rename(temporary, path)?)
}

// SPDX-License-Identifier: Apache-2.0
//! A real Kubernetes of `tests/kubernetes`, and what an administrator does with it.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{
    binaries,
    netns::{self, Netns},
    process::{Output, Running, run},
    runtime::image,
    sandbox::leftovers,
    suite::Ground,
    wait::wait_for,
};

pub mod links;
pub mod load;
pub mod pods;

/// Where `setup.sh` builds.
pub const ROOT: &str = "/opt/k8s";
/// The prefix of all that a cluster makes. Two at once need two.
const LAB: &str = "LAB";
/// Set to keep a cluster when its test is over, and to go on with one that was kept.
const KEEP: &str = "CULVERT_KEEP";
const PATIENCE: Duration = Duration::from_secs(120);
/// Of a node that begins.
const LONG: Duration = Duration::from_secs(300);

/// A cluster that runs. It is taken down when dropped.
#[derive(Debug)]
pub struct Cluster {
    lab: String,
    scripts: PathBuf,
    repository: PathBuf,
    down: bool,
}

// === impl Cluster ===

impl Cluster {
    /// Starts nodes `n1`, `n2`, … with the images of `make images` and with [`image::APP`].
    pub fn up(nodes: u8) -> anyhow::Result<Self> {
        let repository = repository()?;
        let cluster = Self {
            lab: env::var(LAB).unwrap_or_else(|_| "e2e".to_owned()),
            scripts: repository.join("tests/kubernetes"),
            repository,
            down: false,
        };
        // What a test that was killed has left.
        if env::var_os(KEEP).is_none() {
            cluster.script("down.sh", &[])?.ok()?;
        }
        cluster.begin(nodes)?;
        for node in 1..=nodes {
            cluster.images(node)?;
        }
        Ok(cluster)
    }

    /// Starts what has ended, and no more.
    pub fn begin(&self, nodes: u8) -> anyhow::Result<()> {
        let mut up = self.command("up.sh");
        up.arg(nodes.to_string());
        up.env("TAINTS_n2", "node.culvert.io/agent-not-ready=:NoSchedule");
        let up = run(&mut up, LONG)?
            .ok()
            .inspect_err(|_| self.print_logs())?;
        eprint!("{}", up.stdout);
        Ok(())
    }

    fn images(&self, node: u8) -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let [_, app] = image::archives(dir.path(), &binaries::testapp()?)?;
        let made = fs::read_dir(self.repository.join("target/images")).context("`make images`")?;
        let mut archives = made
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()?;
        archives.push(app);
        for archive in archives {
            let archive = archive.display().to_string();
            self.node(node, &["ctr", "-n", "k8s.io", "images", "import", &archive])?
                .ok()?;
        }
        Ok(())
    }

    /// A script of `tests/kubernetes` that is about this cluster.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new(self.scripts.join(script));
        command.env(LAB, &self.lab);
        command
    }

    fn script(&self, name: &str, args: &[&str]) -> anyhow::Result<Output> {
        run(self.command(name).args(args), LONG)
    }

    /// `kubectl`, as the cluster's administrator.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<Output> {
        run(self.command("k").args(args), PATIENCE)?.ok()
    }

    /// What `kubectl get … -o json` says.
    pub fn get(&self, what: &[&str]) -> anyhow::Result<Value> {
        let args: Vec<_> = ["get"]
            .iter()
            .chain(what)
            .chain(&["-o", "json"])
            .copied()
            .collect();
        self.kubectl(&args)?.json()
    }

    /// `kubectl apply` of YAML or JSON.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        let mut apply = Running::start(self.command("k").args(["apply", "-f", "-"]))?;
        apply.say(manifests)?;
        apply.finish(PATIENCE)?.ok()?;
        Ok(())
    }

    /// A line of the README, as its reader types it, with `kubectl` and `culvert` in PATH and set up.
    pub fn shell(&self, line: &str) -> anyhow::Result<Output> {
        let culvert = binaries::product("culvert")?;
        let bin = culvert.parent().unwrap_or(&self.repository).display();
        let path = format!("{bin}:{ROOT}/bin:{}", env::var("PATH").unwrap_or_default());
        let config = format!("{ROOT}/run/{}/kubeconfig/admin.kubeconfig", self.lab);
        let mut shell = Command::new("nsenter");
        shell.arg(format!("--net=/run/netns/{}-cp", self.lab));
        shell.args(["--", "bash", "-o", "pipefail", "-c", line]);
        shell.current_dir(&self.repository);
        shell.env("PATH", path).env("KUBECONFIG", config);
        run(&mut shell, LONG)
    }

    /// A program on a node, as root there, in all of its namespaces.
    pub fn node(&self, node: u8, command: &[&str]) -> anyhow::Result<Output> {
        let node = node.to_string();
        run(self.command("nodesh").arg(node).args(command), PATIENCE)
    }

    /// The network of the control plane's machine: pods and nodes can be reached from it.
    pub fn outside(&self) -> Netns {
        Netns::named(&format!("{}-cp", self.lab))
    }

    /// The network of a node.
    pub fn network(&self, node: u8) -> Netns {
        Netns::named(&format!("{}-n{node}", self.lab))
    }

    /// The network between the nodes.
    pub fn wire(&self) -> Netns {
        Netns::named(&format!("{}-sw", self.lab))
    }

    /// Ends the API server, until [`Self::begin`].
    pub fn end_api_server(&self) -> anyhow::Result<()> {
        let file = self.run_dir().join("pids/kube-apiserver");
        let pid = fs::read_to_string(&file)?;
        run(Command::new("kill").args(["-KILL", pid.trim()]), PATIENCE)?.ok()?;
        wait_for("the API server to be gone", PATIENCE, || {
            ensure!(!Path::new("/proc").join(pid.trim()).exists(), "{pid} runs");
            Ok(())
        })
    }

    /// Cuts a node's power, until [`Self::begin`].
    pub fn end_node(&self, node: u8) -> anyhow::Result<()> {
        self.script("reboot.sh", &[&node.to_string()])?.ok()?;
        Ok(())
    }

    /// The cgroup (v2) below which all of a node's processes are.
    pub fn cgroup(&self, node: u8) -> String {
        format!("/sys/fs/cgroup/unified/{}-n{node}", self.lab)
    }

    fn run_dir(&self) -> PathBuf {
        Path::new(ROOT).join("run").join(&self.lab)
    }

    fn left(&self) -> anyhow::Result<()> {
        let names = netns::names_with(&format!("{}-", self.lab))?;
        ensure!(names.is_empty(), "network namespaces {names:?} are left");
        ensure!(!self.run_dir().exists(), "{:?} is left", self.run_dir());
        leftovers::none(&format!("run/{}/", self.lab))
    }
}

impl Ground for Cluster {
    fn print_logs(&self) {
        for (what, args) in [
            ("pods", &["get", "pods", "-A", "-o", "wide"][..]),
            (
                "events",
                &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            ),
            (
                "control",
                &[
                    "-n",
                    "culvert",
                    "logs",
                    "deploy/culvert-control",
                    "--tail=60",
                ],
            ),
            (
                "agents",
                &[
                    "-n",
                    "culvert",
                    "logs",
                    "-l",
                    "culvert.io/component=agent",
                    "--tail=60",
                    "--prefix",
                ],
            ),
            (
                "proxies",
                &[
                    "-n",
                    "culvert",
                    "logs",
                    "-l",
                    "culvert.io/component=proxy",
                    "--tail=60",
                    "--prefix",
                ],
            ),
        ] {
            let said = self.kubectl(args).map(|output| output.stdout);
            eprintln!(
                "--- {what}\n{}",
                said.unwrap_or_else(|error| error.to_string())
            );
        }
        let _ = leftovers::print_logs(&self.run_dir().join("log"));
    }

    fn down(&mut self) -> anyhow::Result<()> {
        if self.down || env::var_os(KEEP).is_some() {
            return Ok(());
        }
        self.down = true;
        self.script("down.sh", &[])?.ok()?;
        self.left()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.down() {
            let message = format!("down of the cluster {}: {error:#}", self.lab);
            match thread::panicking() {
                true => eprintln!("{message}"),
                false => panic!("{message}"),
            }
        }
    }
}

fn repository() -> anyhow::Result<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(tests.parent().context("tests has no parent")?.to_owned())
}

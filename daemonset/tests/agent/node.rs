// SPDX-License-Identifier: Apache-2.0
//! A node for tests: a cgroup, a bpffs, a pod's namespace, and the built agent.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use culvert_api::cni::{self, Attachment, Request, Response};
use serde_json::json;
use tempfile::TempDir;

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

const AGENT: &str = env!("CARGO_BIN_EXE_culvert-agent");

/// What the chart gives to the agent.
const CAPABILITIES: &str = "-all,+bpf,+net_admin,+sys_admin,+chown";

const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// The pod's address and that of its neighbour.
pub const POD: &str = "10.78.0.2";
pub const NEIGHBOUR: &str = "10.78.0.1";

/// One node with one pod.
pub struct Node {
    pub name: String,
    dir: TempDir,
    pub cgroup: PathBuf,
    agent: Option<Child>,
}

impl Node {
    /// A node whose only pod is not opted in, without an agent.
    pub fn new(label: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cvi-{label}-{}-{count}", std::process::id());
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let root = CGROUPS
            .iter()
            .find(|root| Path::new(root).join("cgroup.procs").exists());
        let cgroup = Path::new(root.unwrap_or_else(|| panic!("no cgroup v2"))).join(&name);
        let node = Self {
            name,
            dir,
            cgroup,
            agent: None,
        };
        node.prepare();
        node
    }

    fn prepare(&self) {
        fs::create_dir(&self.cgroup).unwrap_or_else(|e| panic!("{e}"));
        for dir in ["manifests", "bpf", "state", "run"] {
            fs::create_dir(self.path(dir)).unwrap_or_else(|e| panic!("{e}"));
        }
        let bpf = self.path("bpf").display().to_string();
        run(&["mount", "-t", "bpf", "bpf", &bpf]);
        let name = &self.name;
        for line in [
            format!("netns add {name}"),
            format!("netns add {name}-peer"),
            format!("link add eth0 netns {name} type veth peer name eth0 netns {name}-peer"),
            format!("-n {name} addr add {POD}/24 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name}-peer addr add {NEIGHBOUR}/24 dev eth0"),
            format!("-n {name}-peer link set eth0 up"),
            format!("-n {name}-peer link set lo up"),
            format!("-n {name} route add default via {NEIGHBOUR}"),
        ] {
            let line: Vec<_> = ["ip"].into_iter().chain(line.split_whitespace()).collect();
            run(&line);
        }
        self.write_pod("disabled");
    }

    /// A path below the node's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the pod's manifest.
    pub fn write_pod(&self, inject: &str) {
        self.write("web", &self.uid(), inject);
    }

    /// Writes a manifest of a pod, in one step.
    pub fn write(&self, name: &str, uid: &str, inject: &str) {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "shop", "uid": uid,
                "annotations": {"culvert.io/inject": inject},
            },
            "spec": {"nodeName": self.name, "serviceAccountName": "web", "containers": [{"name": "c"}]},
        });
        let temporary = self.path("manifests/pod.tmp");
        fs::write(&temporary, pod.to_string()).unwrap_or_else(|e| panic!("{e}"));
        let path = self.path("manifests").join(format!("{name}.json"));
        fs::rename(temporary, path).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The pod's uid.
    pub fn uid(&self) -> String {
        format!("uid-{}", self.name)
    }

    /// Starts the agent and waits until it is ready.
    pub fn start(&mut self, proxy_uid: u32) {
        self.start_with(proxy_uid, &[]);
    }

    /// Starts the agent with more flags and waits until it is ready.
    pub fn start_with(&mut self, proxy_uid: u32, more: &[&str]) {
        let manifests = self.path("manifests").display().to_string();
        let proxy_uid = proxy_uid.to_string();
        let all = ["--manifests", &manifests, "--proxy-uid", &proxy_uid];
        self.launch(Command::new(AGENT), &[&all, more].concat());
        self.until_ready();
    }

    /// Starts the agent as a cluster does, and waits for nothing.
    pub fn launch_in_cluster(&mut self, more: &[&str]) {
        let path = |name: &str| self.path(name).display().to_string();
        let kubelet = self.cgroup.join("kubelet");
        for dir in [&self.path("net"), &self.path("bin"), &kubelet] {
            fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{e}"));
        }
        let (kubeconfig, cri) = (path("kubeconfig"), path("cri.sock"));
        let (net, bin, plugin, cache) = (path("net"), path("bin"), path("plugin"), path("cache"));
        let kubelet = kubelet.display().to_string();
        let all = [
            "--kubernetes",
            "--kubeconfig",
            &kubeconfig,
            "--cri-socket",
            &cri,
            "--kubelet-cgroup",
            &kubelet,
            "--cni-net-dir",
            &net,
            "--cni-bin-dir",
            &bin,
            "--cni-plugin",
            &plugin,
            "--cni-cache-dir",
            &cache,
        ];
        let proxy: &[&str] = match more.contains(&"--proxy-uid") {
            true => &[],
            false => &["--proxy-uid", "0"],
        };
        let mut agent = Command::new("setpriv");
        agent.args(["--bounding-set", CAPABILITIES, "--", AGENT]);
        self.launch(agent, &[&all, proxy, more].concat());
    }

    fn launch(&mut self, mut agent: Command, more: &[&str]) {
        let log = fs::File::create(self.path("log")).unwrap_or_else(|e| panic!("{e}"));
        let arg = |name: &str| self.path(name).display().to_string();
        let agent = agent
            .args(["--node", &self.name])
            .args(["--cgroup", &self.cgroup.display().to_string()])
            .args(["--bpf-dir", &arg("bpf/node"), "--state-dir", &arg("state")])
            .args(["--run-dir", &arg("run"), "--admin", "127.0.0.1:0"])
            .args(["--log", "debug"])
            .args(more)
            .stderr(log)
            .spawn();
        self.agent = Some(agent.unwrap_or_else(|e| panic!("{e}")));
    }

    /// Waits until the agent serves.
    pub fn until_ready(&self) {
        self.until("the agent is ready", || {
            self.log().contains("The agent is ready").then_some(())
        });
    }

    /// Sends the agent a signal.
    pub fn signal(&self, signal: &str) {
        if let Some(agent) = &self.agent {
            run(&["kill", signal, &agent.id().to_string()]);
        }
    }

    /// Waits until the agent has ended, and says how.
    pub fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let agent = self.agent.as_mut()?;
            if let Some(status) = agent.try_wait().unwrap_or_else(|e| panic!("{e}")) {
                self.agent = None;
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the agent has not ended within {PATIENCE:?}")
    }

    /// Ends the agent by a signal, and says how it ended.
    pub fn stop(&mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        self.ended()
    }

    /// What the agent has open.
    pub fn files(&self) -> impl Iterator<Item = String> {
        let pid = self.agent.as_ref().map_or(0, Child::id);
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        let names = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        names.map(|name| name.display().to_string())
    }

    /// What the agent logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The agent's metrics.
    pub fn metrics(&self) -> String {
        let log = self.log();
        let addr = log.split("The agent is ready admin=").nth(1);
        let addr = addr
            .and_then(|rest| rest.lines().next())
            .unwrap_or_default();
        let mut stream = TcpStream::connect(addr).unwrap_or_else(|e| panic!("{addr}: {e}"));
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut text = String::new();
        let read = stream
            .write_all(request)
            .and_then(|()| stream.read_to_string(&mut text));
        read.unwrap_or_else(|e| panic!("{e}"));
        text
    }

    /// Polls until there is something.
    pub fn until<T>(&self, what: &str, look: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(seen) = look() {
                return seen;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("not within {PATIENCE:?}: {what}\n{}", self.log());
    }

    /// Asks the agent as the CNI plugin does.
    pub fn ask(&self, command: cni::Command) -> Response {
        let request = Request {
            versions: cni::VERSIONS,
            command,
        };
        let asked = || {
            let mut stream = UnixStream::connect(self.path("run/cni.sock"))?;
            writeln!(stream, "{}", serde_json::to_string(&request)?)?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            std::io::Result::Ok(line)
        };
        let line = asked().unwrap_or_else(|e| panic!("{e}\n{}", self.log()));
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// The pod's attachment.
    pub fn attachment(&self) -> Attachment {
        let args = [
            ("K8S_POD_NAMESPACE", "shop".to_owned()),
            ("K8S_POD_NAME", "web".to_owned()),
            ("K8S_POD_UID", self.uid()),
        ];
        Attachment {
            network: "pods".into(),
            container_id: format!("c-{}", self.name),
            ifname: "eth0".into(),
            netns: Some(Path::new("/run/netns").join(&self.name)),
            args: BTreeMap::from(args.map(|(key, value)| (key.to_owned(), value))),
        }
    }

    /// The namespace at the other end of the pod's wire.
    pub fn peer(&self) -> String {
        format!("{}-peer", self.name)
    }

    /// Takes the pod's sandbox down.
    pub fn delete_namespace(&self) {
        run(&["ip", "netns", "del", &self.name]);
    }

    /// Runs `ip -n <pod> ARGS`.
    pub fn ip(&self, args: &str) -> String {
        let all = ["ip", "-n", &self.name].into_iter();
        let output = run(&all.chain(args.split_whitespace()).collect::<Vec<_>>());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a program in the pod's namespace.
    pub fn inside(&self, command: &[&str]) {
        let all = ["ip", "netns", "exec", &self.name].into_iter();
        run(&all.chain(command.iter().copied()).collect::<Vec<_>>());
    }

    /// The policy rules of both families.
    pub fn rules(&self) -> String {
        self.ip("-4 rule") + &self.ip("-6 rule")
    }

    /// Starts a program as a process of the pod.
    pub fn spawn(&self, script: &str) -> Child {
        let (procs, name) = (self.cgroup.join("cgroup.procs"), &self.name);
        let script = format!(
            "echo $$ > {}; exec ip netns exec {name} {script}",
            procs.display()
        );
        let child = Command::new("bash")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        child.unwrap_or_else(|e| panic!("{e}"))
    }

    /// What is pinned for pods.
    pub fn pins(&self) -> Vec<String> {
        let mut found = self.all_pins();
        found.retain(|path| path.contains("/pods/"));
        found
    }

    /// What is pinned at all.
    pub fn all_pins(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.path("bpf/node"), &mut found);
        found
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.stop("-KILL");
        for name in [self.name.clone(), format!("{}-peer", self.name)] {
            drop(Command::new("ip").args(["netns", "del", &name]).status());
        }
        drop(Command::new("umount").arg(self.path("bpf")).status());
        // A cluster's only.
        drop(fs::remove_dir(self.cgroup.join("kubelet")));
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("could not remove {}", self.cgroup.display());
    }
}

fn walk(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        found.push(path.display().to_string());
        if path.is_dir() {
            walk(&path, found);
        }
    }
}

/// Runs a command that must succeed.
pub fn run(command: &[&str]) -> Output {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    output
}

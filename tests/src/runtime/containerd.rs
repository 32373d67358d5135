// SPDX-License-Identifier: Apache-2.0
//! containerd with runc, on a node of a sandbox.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{cri::Cri, image, space::Space};
use crate::{binaries, sandbox::Sandbox, wait::wait_for};

const SOON: Duration = Duration::from_secs(30);
/// Where distributions put the reference CNI plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The directories that a container runtime is told of.
#[derive(Clone, Debug)]
pub struct Cni {
    /// Of network configurations.
    pub net: PathBuf,
    /// Of plugins.
    pub bin: PathBuf,
}

/// containerd that runs on a node, or was killed.
#[derive(Debug)]
pub struct Containerd {
    /// The interface that it serves.
    pub cri: Cri,
    process: Option<Child>,
    /// Where it runs. Dropped last.
    pub space: Space,
}

// === impl Containerd ===

impl Containerd {
    /// Starts it on a node, whose network it uses with `portmap` behind Culvert, with the images
    /// of [`image::archives`].
    pub fn start(sandbox: &Sandbox, node: &str) -> anyhow::Result<Self> {
        let space = Space::new(sandbox, node)?;
        let cni = Cni::below(&space.path("cni"))?;
        let culvert = binaries::product("culvert-cni")?;
        symlink(culvert, cni.bin.join("culvert-cni"))?;
        let conflist = conflist(&sandbox.node_root(node))?;
        fs::write(cni.net.join("10-culvert.conflist"), conflist.to_string())?;
        Self::start_in(sandbox, space, &cni)
    }

    /// Starts it with the network that these directories have.
    pub fn start_in(sandbox: &Sandbox, space: Space, cni: &Cni) -> anyhow::Result<Self> {
        fs::write(space.path("containerd.toml"), config(&space, cni))?;
        let mut containerd = Self {
            cri: Cri::new(&space.path("containerd.sock"))?,
            process: None,
            space,
        };
        containerd.resume()?;
        containerd.import(sandbox.testapp())?;
        Ok(containerd)
    }

    /// Starts it again.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        // nsenter has to fork to enter a process namespace: the shell says who containerd is.
        let run = format!(
            "echo $$ > {pid}; exec containerd --config {config}",
            pid = self.space.path("containerd.pid").display(),
            config = self.space.path("containerd.toml").display(),
        );
        let mut command = self.space.command("sh");
        command.args(["-c", &run]).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        self.process = Some(command.spawn().context("start containerd")?);
        wait_for("containerd to be ready", SOON, || self.cri.ready())
    }

    /// Kills it. Its shims and their containers go on.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let pid = fs::read_to_string(self.space.path("containerd.pid"))?;
        self.space.run("kill", &["-KILL", pid.trim()])?.ok()?;
        self.process.take().context("it does not run")?.wait()?;
        Ok(())
    }

    /// The first process of a container, as it is known inside.
    pub fn init_of(&self, container: &str) -> anyhow::Result<String> {
        let task = self
            .space
            .path("state/io.containerd.runtime.v2.task/k8s.io");
        Ok(fs::read_to_string(task.join(container).join("init.pid"))?)
    }

    fn import(&self, testapp: &Path) -> anyhow::Result<()> {
        let socket = self.space.path("containerd.sock").display().to_string();
        for archive in image::archives(&self.space.path(""), testapp)? {
            let archive = archive.display().to_string();
            let args = ["-a", &socket, "-n", "k8s.io", "images", "import", &archive];
            self.space.run("ctr", &args)?.ok()?;
        }
        Ok(())
    }

    /// Where it logs.
    fn log(&self) -> PathBuf {
        self.space.path("containerd.log")
    }

    /// Prints the end of its log.
    pub fn print_log(&self) {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("--- {}", self.log().display());
        for line in lines.iter().skip(lines.len().saturating_sub(60)) {
            eprintln!("    {line}");
        }
    }
}

impl Drop for Containerd {
    /// Its space ends the rest.
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

// === impl Cni ===

impl Cni {
    /// With the reference plugins that the chain needs, and `loopback`, which containerd calls.
    pub fn below(dir: &Path) -> anyhow::Result<Self> {
        let (net, bin) = (dir.join("net.d"), dir.join("bin"));
        fs::create_dir_all(&net)?;
        fs::create_dir_all(&bin)?;
        for name in ["bridge", "host-local", "portmap", "loopback"] {
            let found = PLUGINS.iter().map(|at| Path::new(at).join(name));
            let mut found = found.filter(|path| path.exists());
            let plugin = found.next();
            let plugin = plugin.with_context(|| format!("no CNI plugin {name}"))?;
            symlink(plugin, bin.join(name))?;
        }
        Ok(Self { net, bin })
    }
}

/// That of the node, whose bridge and addresses both kinds of pods share, with `portmap` last.
pub fn conflist(node: &Path) -> anyhow::Result<Value> {
    let file = node.join("cni/net.d/10-culvert.conflist");
    let mut list: Value = serde_json::from_slice(&fs::read(file)?)?;
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let plugins = list["plugins"].as_array_mut();
    plugins
        .context("the conflist has no plugins")?
        .push(portmap);
    Ok(list)
}

/// Without CAP_SYS_RESOURCE nothing may lower its `oom_score_adj`.
fn config(space: &Space, cni: &Cni) -> String {
    let at = |name| space.path(name).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{net}"
"#,
        root = at("root"),
        state = at("state"),
        socket = at("containerd.sock"),
        pause = image::PAUSE,
        bin = cni.bin.display(),
        net = cni.net.display(),
    )
}

// SPDX-License-Identifier: Apache-2.0
//! The namespaces in which the container runtimes of a node run, and all that they leave.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::{
    process::{Output, run},
    sandbox::Sandbox,
    wait::wait_for,
};

/// What its first process does.
const INIT: &str = include_str!("node.sh");
/// Where containerd keeps the network namespaces of pods, below its state.
const NETNS: &str = "state/io.containerd.grpc.v1.cri/netns";
const CGROUPS: &str = "/sys/fs/cgroup";
/// How the name of its directory begins; the sandbox's follows.
const PREFIX: &str = "culvert-runtime-";
const SOON: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);
const NONE: Option<&Path> = None;

/// The runtimes' part of a node. It ends when dropped, with all that runs in it.
#[derive(Debug)]
pub struct Space {
    dir: TempDir,
    sandbox: String,
    node: String,
    netns: PathBuf,
    /// Its child is the first process inside.
    unshare: Child,
    init: u32,
}

// === impl Space ===

impl Space {
    /// Makes it on a node.
    pub fn new(sandbox: &Sandbox, node: &str) -> anyhow::Result<Self> {
        collect_dead()?;
        let dir = TempDir::with_prefix(format!("{PREFIX}{}-", sandbox.name()))?;
        let netns = dir.path().join(NETNS);
        share(&netns)?;
        let script = dir.path().join("node.sh");
        fs::write(&script, INIT)?;
        let mut space = Self {
            unshare: start(sandbox, node, &script, dir.path(), &netns).inspect_err(|_| {
                // The guard that would do it does not exist yet.
                let _ = umount2(&netns, MntFlags::MNT_DETACH);
            })?,
            dir,
            sandbox: sandbox.name().to_owned(),
            node: node.to_owned(),
            netns,
            init: 0,
        };
        space.await_init()?;
        Ok(space)
    }

    fn await_init(&mut self) -> anyhow::Result<()> {
        let pid = self.unshare.id();
        wait_for("the runtimes' namespaces", SOON, || {
            let said = || fs::read_to_string(self.path("node.log")).unwrap_or_default();
            ensure!(self.path("up").exists(), "node.sh said {:?}", said());
            Ok(())
        })?;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let first = children.split_whitespace().next();
        self.init = first.context("unshare has no child")?.parse()?;
        Ok(())
    }

    /// A path in its directory, which inside is at the same place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where runtimes keep the network namespaces of containers, for the agent too.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The node that it is on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// A cgroup below the one that the node's agent steers, as runtimes name it.
    pub fn cgroup(&self, name: &str) -> String {
        format!("/culvert/{}/{}/kubepods/{name}", self.sandbox, self.node)
    }

    /// A program that is to run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let init = self.init.to_string();
        command.args(["--target", &init, "--mount", "--net", "--pid", "--"]);
        command.arg(program);
        command
    }

    /// Runs a program inside to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<Output> {
        run(self.command(program).args(args), Duration::from_secs(120))
    }

    /// Ends all that runs inside, and removes what it leaves on the machine.
    fn end(&mut self) -> anyhow::Result<()> {
        // `--kill-child` ends the first process inside, and it takes all others with it.
        self.unshare.kill()?;
        self.unshare.wait()?;
        let inside = PathBuf::from(format!("/proc/{}", self.init));
        wait_for("the runtimes to end", SOON, || {
            ensure!(self.init == 0 || !inside.exists(), "{} is there", self.init);
            Ok(())
        })?;
        unmount(&self.netns)?;
        remove_cgroups(&self.sandbox)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            let message = format!("the end of the container runtimes: {error:#}");
            match thread::panicking() {
                true => eprintln!("{message}"),
                false => panic!("{message}"),
            }
        }
    }
}

/// What tests left that were killed: their processes are gone with them.
fn collect_dead() -> anyhow::Result<()> {
    for entry in fs::read_dir(std::env::temp_dir())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.and_then(|name| name.strip_prefix(PREFIX)?.rsplit_once('-'));
        let Some((sandbox, _)) = name else { continue };
        let pid = sandbox
            .strip_prefix('t')
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            unmount(&path)?;
            fs::remove_dir_all(&path)?;
            remove_cgroups(sandbox)?;
        }
    }
    Ok(())
}

/// runc uses every hierarchy that is mounted.
fn remove_cgroups(sandbox: &str) -> anyhow::Result<()> {
    let parent = Path::new("culvert").join(sandbox);
    for hierarchy in fs::read_dir(CGROUPS)? {
        let hierarchy = hierarchy?.path();
        // The unified hierarchy is the sandbox's.
        if hierarchy.join("cgroup.controllers").exists() || hierarchy.is_symlink() {
            continue;
        }
        let ours = hierarchy.join(&parent);
        remove_cgroup(&ours).with_context(|| format!("remove {}", ours.display()))?;
        // Another sandbox may be below it: then the kernel refuses.
        let _ = fs::remove_dir(hierarchy.join("culvert"));
    }
    Ok(())
}

/// Mounts in it are seen inside and outside.
fn share(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    mount(Some(dir), dir, NONE, MsFlags::MS_BIND, NONE)?;
    Ok(mount(NONE, dir, NONE, MsFlags::MS_SHARED, NONE)?)
}

/// The signal of the parent's death ends it even when the test is killed.
fn start(
    sandbox: &Sandbox,
    node: &str,
    script: &Path,
    dir: &Path,
    netns: &Path,
) -> anyhow::Result<Child> {
    let log = File::create(dir.join("node.log"))?;
    let net = format!("--net={}", sandbox.node(node).path().display());
    let mut command = Command::new("nsenter");
    command
        .args([&net, "--", "setpriv", "--pdeathsig", "KILL"])
        .args(["unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--propagation", "unchanged", "sh"])
        .args([script, dir, netns])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.spawn().context("start unshare")
}

/// A directory and what is mounted below it; containerd may have left network namespaces.
fn unmount(dir: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut ours: Vec<_> = points.filter(|at| Path::new(at).starts_with(dir)).collect();
    ours.sort_unstable();
    for at in ours.into_iter().rev() {
        umount2(at, MntFlags::MNT_DETACH).with_context(|| format!("unmount {at}"))?;
    }
    Ok(())
}

/// The deepest first; a process that was killed just now may still be in one.
fn remove_cgroup(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    let until = Instant::now() + SOON;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                thread::sleep(POLL);
            }
            removed => return removed,
        }
    }
}

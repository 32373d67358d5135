// SPDX-License-Identifier: Apache-2.0
//! Sandboxes come, go, die half way, and leave each other and the machine alone.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    manifests::Pod,
    process::{Output, run},
    require,
    sandbox::{Daemon, Plan, Sandbox, leftovers},
    suite::Suite,
    wait::wait_for,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn lifecycle() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let links = leftovers::links()?;
    let mut suite = Suite::new(sandbox("life")?);
    suite.step("up twice changes nothing", up_twice);
    suite.step("a manifest changes the sandbox live", changed_live);
    suite.step("a node that could not start is tried again", node_again);
    suite.step("an up that fails leaves no process", failed_up);
    suite.step("a container that fails its probe may end", ends_gently);
    suite.step("a second sandbox is beside the first", two_sandboxes);
    suite.step("down twice is fine", down_twice);
    suite.step(
        "a supervisor that is killed is replaced by up",
        killed_supervisor,
    );
    suite.step(
        "what a killed supervisor left goes with down",
        killed_then_down,
    );
    suite.step("the machine's own network is left alone", |_| {
        let now = leftovers::links()?;
        ensure!(now == links, "links were {links:?} and are {now:?}");
        Ok(())
    });
    suite.finish()
}

fn sandbox(name: &str) -> anyhow::Result<Sandbox> {
    let plan = Plan::new(name)?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo"]).strict();
    let sandbox = plan.pod(&pod("a", "n1"))?.pod(&pod("b", "n2"))?.up()?;
    works(&sandbox)?;
    Ok(sandbox)
}

fn works(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (from, to) in [("a", "b"), ("b", "a")] {
        sandbox.answers(from, to, 7000)?;
        sandbox
            .connect(from, &sandbox.at(to, 7000)?, &["--count", "20"])?
            .all()?;
    }
    Ok(())
}

fn up(sandbox: &Sandbox) -> anyhow::Result<()> {
    let dir = sandbox.dir().to_str().context("no UTF-8")?;
    sandbox.sandbox("up", &["-f", dir, "--nodes", "2"])?.ok()?;
    Ok(())
}

fn supervisor(sandbox: &Sandbox) -> anyhow::Result<i32> {
    let file = sandbox.root().join("supervisor.pid");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(text.trim().parse()?)
}

fn up_twice(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = (supervisor(sandbox)?, sandbox.ip("a")?);
    up(sandbox)?;
    let after = (supervisor(sandbox)?, sandbox.ip("a")?);
    ensure!(before == after, "{before:?} became {after:?}");
    works(sandbox)
}

fn changed_live(sandbox: &Sandbox) -> anyhow::Result<()> {
    let app = sandbox.testapp().to_owned();
    sandbox.apply(&Pod::serving("c", "n2", &app, &["7000=echo"]).strict())?;
    sandbox.answers("a", "c", 7000)?;
    sandbox.delete_pod("c")?;
    let netns = sandbox.pod("c");
    wait_for("the pod c to go", SOON, || match netns.path().exists() {
        true => Err("its namespace is still there"),
        false => Ok(()),
    })
}

/// In the way of a sandbox, until it is dropped.
struct InTheWay(String);

impl InTheWay {
    fn of(sandbox: &str, node: &str) -> anyhow::Result<Self> {
        let netns = format!("cv-{sandbox}-{node}");
        ip_netns("add", &netns)?.ok()?;
        Ok(Self(netns))
    }
}

impl Drop for InTheWay {
    fn drop(&mut self) {
        if let Err(error) = ip_netns("del", &self.0) {
            eprintln!("{} is left: {error}", self.0);
        }
    }
}

fn ip_netns(verb: &str, netns: &str) -> anyhow::Result<Output> {
    run(Command::new("ip").args(["netns", verb, netns]), SOON)
}

fn up_with(sandbox: &Sandbox, nodes: &str) -> anyhow::Result<Output> {
    let dir = sandbox.dir().to_str().context("no UTF-8")?;
    sandbox.sandbox("up", &["-f", dir, "--nodes", nodes])
}

/// One more, while somebody else has a namespace of its name.
fn node_again(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = supervisor(sandbox)?;
    let in_the_way = InTheWay::of(sandbox.name(), "n3")?;
    let failed = up_with(sandbox, "3")?;
    ensure!(failed.status != Some(0), "it did not fail: {failed:?}");
    works(sandbox)?;
    drop(in_the_way);
    up_with(sandbox, "3")?.ok()?;
    sandbox.ready(Daemon::Proxy("n3"))?;
    ensure!(
        supervisor(sandbox)? == before,
        "another supervisor is there"
    );
    let app = sandbox.testapp().to_owned();
    sandbox.apply(&Pod::serving("third", "n3", &app, &["7000=echo"]).strict())?;
    sandbox.answers("a", "third", 7000)?;
    sandbox.delete_pod("third")
}

/// Control and the first node run by the time that the second fails.
fn failed_up(_: &Sandbox) -> anyhow::Result<()> {
    let mut other = sandbox("fails")?;
    other.sandbox("down", &[])?.ok()?;
    let in_the_way = InTheWay::of(other.name(), "n2")?;
    // It takes such a namespace for its own of an earlier time, and removes it when it begins.
    let ended = AtomicBool::new(false);
    let failed = thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let _ = ip_netns("add", &in_the_way.0);
            }
        });
        let failed = up_with(&other, "2");
        ended.store(true, Ordering::Relaxed);
        failed
    })?;
    ensure!(failed.status != Some(0), "it did not fail: {failed:?}");
    let of = other.root().display().to_string();
    let left = fs::read_dir("/proc")?.filter_map(|entry| {
        let cmdline = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        cmdline.contains(&of).then_some(cmdline)
    });
    let left: Vec<_> = left.collect();
    ensure!(left.is_empty(), "{left:?}");
    drop(in_the_way);
    up(&other)?;
    works(&other)?;
    other.down()
}

/// SIGTERM first, as a kubelet does.
fn ends_gently(sandbox: &Sandbox) -> anyhow::Result<()> {
    let script = "trap 'echo ends gently; exit 0' TERM; while :; do sleep 0.1; done";
    let doomed = Pod::new("doomed", "n1", &["/bin/sh", "-c", script]).liveness_probe(7000);
    sandbox.apply(&doomed)?;
    wait_for("the container to end", SOON, || {
        let log = sandbox.logs("doomed")?;
        ensure!(log.contains("ends gently"), "it says {log:?}");
        Ok(())
    })?;
    sandbox.delete_pod("doomed")
}

/// Both have agents on this kernel, and pods with the same addresses.
fn two_sandboxes(first: &Sandbox) -> anyhow::Result<()> {
    let mut second = sandbox("beside")?;
    works(first)?;
    works(&second)?;
    second.down()?;
    works(first)
}

fn down_twice(first: &Sandbox) -> anyhow::Result<()> {
    let mut other = sandbox("twice")?;
    other.down()?;
    other.sandbox("down", &[])?.ok()?;
    works(first)
}

fn kill_supervisor(sandbox: &Sandbox) -> anyhow::Result<()> {
    let pid = supervisor(sandbox)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    wait_for("the supervisor to die", SOON, || match lives(pid) {
        true => Err("it lives"),
        false => Ok(()),
    })
}

fn lives(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find(|line| line.starts_with("State:"));
    state.is_some_and(|state| !state.contains('Z'))
}

fn killed_supervisor(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = supervisor(sandbox)?;
    kill_supervisor(sandbox)?;
    up(sandbox)?;
    ensure!(
        supervisor(sandbox)? != before,
        "the supervisor was not replaced"
    );
    works(sandbox)
}

fn killed_then_down(_: &Sandbox) -> anyhow::Result<()> {
    let mut other = sandbox("killed")?;
    kill_supervisor(&other)?;
    other.down()
}

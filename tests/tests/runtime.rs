// SPDX-License-Identifier: Apache-2.0
//! Pods of a real container runtime: containerd by its CRI, podman, and the chain of CNI plugins
//! called as runtimes call it on their worst days.

#[path = "runtime/away.rs"]
mod away;
#[path = "runtime/direct.rs"]
mod direct;
#[path = "runtime/world.rs"]
mod world;

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    manifests::Pod,
    require,
    runtime::{containerd::Containerd, image::TESTAPP, kubelet::serving, podman::Podman},
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};

use crate::world::{NODE, World, enrolled, opened};

const SOON: Duration = Duration::from_secs(30);
const LINE: [&str; 2] = ["--exchange", "line"];
const AT_ONCE: usize = 50;

#[test]
fn runtime() -> anyhow::Result<()> {
    if !require::root()? || !require::programs(&["containerd", "runc", "podman", "busybox"])? {
        return Ok(());
    }
    let sandbox = sandbox()?;
    let mut world = World::new(&sandbox)?;
    let mut suite = Suite::new(sandbox);
    suite.step(
        "containers and pods of the sandbox talk mTLS both ways",
        |s| both_ways(s, &world),
    );
    suite.step("a strict container refuses who has no identity", |s| {
        strict(s, &world)
    });
    suite.step(
        "a container that is restarted in its pod keeps the mesh",
        |s| restarted(s, &mut world),
    );
    suite.step("a hostPort leads into a meshed pod", |s| {
        host_port(s, &world)
    });
    suite.step("ADD and CHECK are repeated", |s| {
        direct::repeated(s, &world)
    });
    suite.step("DEL comes in any order and with nothing", |s| {
        direct::deleted(s, &world)
    });
    suite.step("GC lets go of what its network does not list", |s| {
        direct::collected(s, &world)
    });
    suite.step("mistakes of a runtime are told", |s| {
        direct::mistakes(s, &world)
    });
    suite.step("50 pods at once come and go", |s| at_once(s, &world));
    suite.step("everything is killed and comes back", |s| {
        everything_killed(s, &mut world)
    });
    suite.step(
        "a pod whose namespace went while containerd was dead",
        |s| namespace_gone(s, &mut world),
    );
    suite.step("without the agent an opted-in pod waits", |s| {
        away::opted_in(s, &world)
    });
    suite.step("a pod that passed without the agent is adopted", |s| {
        away::adopted(s, &world)
    });
    suite.step("a container of podman is no pod", |s| podman(s, &world));
    suite.step("podman runs pods that the manifests know", |s| {
        podman_in_the_mesh(s, &world)
    });
    suite.step("nothing is left of the pods", |s| nothing_left(s, &world));
    if suite.has_failed() {
        world.containerd.print_log();
    }
    drop(world);
    suite.finish()
}

/// containerd is on the first node; these run without it.
fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("runtime")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &["7000=echo", "7001=whoami"]);
    let sandbox = plan
        .pod(&pod("client", "n2").meshed())?
        .pod(&pod("near", NODE).meshed())?
        .pod(&pod("plain", "n2"))?
        .up()?;
    sandbox.answers("client", "near", 7000)?;
    Ok(sandbox)
}

/// Who is at the other end is what both applications see.
fn both_ways(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    for (pod, node) in [("client", "n2"), ("near", NODE)] {
        let served = opened(sandbox, NODE, "inbound", "web", pod)?;
        let report = sandbox.connect(pod, &world.web.at(7001), &LINE)?;
        let seen = report.whoami()?.peer.ip();
        ensure!(seen == sandbox.ip(pod)?, "web sees {seen} for {pod}");
        let now = opened(sandbox, NODE, "inbound", "web", pod)?;
        ensure!(now > served, "{pod} to web was not mTLS");

        let served = opened(sandbox, node, "inbound", pod, "web")?;
        let report = kubelet.connect(&world.web, &sandbox.at(pod, 7001)?, &LINE)?;
        let seen = report.whoami()?.peer.ip();
        ensure!(seen == world.web.ip, "{pod} sees {seen} for web");
        let now = opened(sandbox, node, "inbound", pod, "web")?;
        ensure!(now > served, "web to {pod} was not mTLS");
    }
    Ok(())
}

fn strict(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let at = world.strict.at(7000);
    sandbox.connect("client", &at, &["--count", "10"])?.all()?;
    kubelet
        .connect(&world.web, &at, &["--count", "10"])?
        .all()?;
    sandbox.connect("plain", &at, &[])?.refused()?;
    sandbox.connect("plain", &world.web.at(7000), &[])?.all()?;
    Ok(())
}

fn restarted(sandbox: &Sandbox, world: &mut World) -> anyhow::Result<()> {
    let adds = requests(sandbox, "add")?;
    let mut strict = world.strict.clone();
    let kubelet = world.kubelet(sandbox);
    for attempt in 1..=2 {
        kubelet.restart(&mut strict, attempt)?;
        let at = strict.at(7000);
        wait_for("the container to serve again", SOON, || {
            sandbox.connect("client", &at, &[])?.all().map(|_| ())
        })?;
        sandbox.connect("plain", &at, &[])?.refused()?;
        let served = opened(sandbox, "n2", "inbound", "client", "strict")?;
        kubelet
            .connect(&strict, &sandbox.at("client", 7000)?, &[])?
            .all()?;
        let now = opened(sandbox, "n2", "inbound", "client", "strict")?;
        ensure!(now > served, "the new container talks plaintext");
    }
    world.strict = strict;
    ensure!(requests(sandbox, "add")? == adds, "the pod was added again");
    Ok(())
}

fn requests(sandbox: &Sandbox, command: &str) -> anyhow::Result<f64> {
    let name = "culvert_agent_cni_requests_total";
    sandbox.metric(Daemon::Agent(NODE), name, &[("command", command)])
}

/// portmap rewrites the destination on the node, before the pod's wire.
fn host_port(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let pod = |name| serving(name, NODE, &["7001=whoami"]);
    let open = kubelet.run_known(kubelet.know(&pod("open").meshed())?.port(8081, 7001))?;
    let shut = kubelet.run_known(kubelet.know(&pod("shut").strict())?.port(8082, 7001))?;
    let node = "10.245.0.1";
    for client in ["client", "plain"] {
        let report = sandbox.connect(client, &format!("{node}:8081"), &LINE)?;
        let seen = report.whoami()?;
        ensure!(seen.peer.ip() == sandbox.ip(client)?, "open sees {seen:?}");
        ensure!(seen.local.to_string() == open.at(7001), "open is {seen:?}");
        sandbox
            .connect(client, &format!("{node}:8082"), &[])?
            .refused()
            .with_context(|| format!("{client} to a strict pod's hostPort"))?;
    }
    kubelet.remove(open)?;
    kubelet.remove(shut)?;
    sandbox
        .connect("plain", &format!("{node}:8081"), &LINE)?
        .refused()?;
    Ok(())
}

fn at_once(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let before = enrolled(sandbox)?;
    let mut known = Vec::new();
    for nth in 0..AT_ONCE {
        known.push(kubelet.know(&serving(&format!("many-{nth}"), NODE, &["7000=echo"]).strict())?);
    }
    let configs = known.iter().map(|known| kubelet.config(known)).collect();
    let cri = &world.containerd.cri;
    let (ids, failures): (Vec<_>, Vec<_>) =
        cri.run_all(configs).into_iter().partition(Result::is_ok);
    let ids: Vec<_> = ids.into_iter().flatten().collect();
    let first = failures.into_iter().find_map(Result::err);
    let steered = enrolled(sandbox)?;
    let ips: anyhow::Result<BTreeSet<_>> = ids.iter().map(|id| cri.ips(id)).collect();
    cri.remove_all(&ids)?;
    known.iter().try_for_each(|known| kubelet.forget(known))?;
    ensure!(first.is_none(), "{} of {AT_ONCE} run: {first:?}", ids.len());
    ensure!(ips?.len() == AT_ONCE, "two pods have one address");
    let all = f64::from(u32::try_from(AT_ONCE)?);
    ensure!(
        steered == before + all,
        "{steered} steered, {before} before"
    );
    wait_for("the agent to let go of all", SOON, || {
        let left = enrolled(sandbox)?;
        ensure!(left == before, "{left} are enrolled, {before} were before");
        Ok(())
    })
}

/// A connection through the killed proxy breaks; one between its application and itself does not.
fn everything_killed(sandbox: &Sandbox, world: &mut World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let gone = kubelet.run(&serving("gone", NODE, &["7000=echo"]).meshed())?;
    world.containerd.kill()?;
    let parts = [
        ("agent", Daemon::Agent(NODE)),
        ("proxy", Daemon::Proxy(NODE)),
        ("control", Daemon::Control),
    ];
    for (name, daemon) in parts {
        let (pid, node) = (sandbox.pid(daemon)?, (name != "control").then_some(NODE));
        sandbox.kill(name, node, false)?;
        sandbox.replaced(daemon, pid)?;
    }
    world.containerd.resume()?;
    both_ways(sandbox, world)?;
    strict(sandbox, world)?;
    let kubelet = world.kubelet(sandbox);
    let new = kubelet.run(&serving("new", NODE, &["7000=echo"]).strict())?;
    sandbox.answers_at("client", &new.at(7000))?;
    let before = enrolled(sandbox)?;
    kubelet.remove(new)?;
    kubelet.remove(gone)?;
    let left = enrolled(sandbox)?;
    ensure!(left == before - 2.0, "{left} enrolled, {before} before");
    Ok(())
}

/// As after a reboot: containerd knows the pod, its network namespace is gone. The DELs that
/// follow name no namespace.
fn namespace_gone(sandbox: &Sandbox, world: &mut World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let before = enrolled(sandbox)?;
    let lost = kubelet.run(&serving("lost", NODE, &["7000=echo"]).meshed())?;
    let netns = world.netns_of(sandbox, lost.known.uid())?;
    world.containerd.kill()?;
    let rebooted = lose(&world.containerd, &lost.id, &netns);
    world.containerd.resume()?;
    rebooted?;
    let cri = &world.containerd.cri;
    for _ in 0..2 {
        cri.stop(&lost.id).context("stop")?;
    }
    for _ in 0..2 {
        cri.remove(&lost.id).context("remove")?;
    }
    world.kubelet(sandbox).forget(&lost.known)?;
    let left = enrolled(sandbox)?;
    ensure!(left == before, "{left} enrolled, {before} before");
    let record = world.netns_of(sandbox, lost.known.uid());
    ensure!(record.is_err(), "the agent still knows {record:?}");
    both_ways(sandbox, world)
}

fn lose(containerd: &Containerd, id: &str, netns: &str) -> anyhow::Result<()> {
    let pid = containerd.init_of(id)?;
    containerd.space.run("kill", &["-KILL", &pid])?.ok()?;
    containerd.space.run("umount", &["--lazy", netns])?.ok()?;
    Ok(fs::remove_file(netns)?)
}

/// podman names no namespace and no uid, with the agent there and without it.
fn podman(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let podman = Podman::new(&world.containerd.space)?;
    let server = [TESTAPP, "serve", "--listen", "7001=whoami"];
    let ip = podman.start("server", "", &server)?;
    let at = format!("{ip}:7001");
    for client in ["client", "plain"] {
        let seen = sandbox.connect(client, &at, &LINE)?.whoami()?.peer.ip();
        ensure!(seen == sandbox.ip(client)?, "it sees {seen} for {client}");
    }
    let network = culvert_tests::runtime::podman::NETWORK;
    podman.connect(network, &world.web.at(7001), &LINE)?.all()?;
    podman
        .connect(network, &world.strict.at(7000), &[])?
        .refused()?;
    sandbox.kill("agent", Some(NODE), true)?;
    let without = podman.connect(network, &world.web.at(7001), &LINE);
    sandbox.start("agent", Some(NODE))?;
    sandbox.ready(Daemon::Agent(NODE))?;
    without?.all().context("with the agent away")?;
    podman.remove("server")
}

/// Who asks podman for it may say which pod a container is: by its name alone, or with its uid.
fn podman_in_the_mesh(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    let podman = Podman::new(&world.containerd.space)?;
    for with_uid in [false, true] {
        let name = format!("podman-{with_uid}");
        let mut known = kubelet.know(&serving(&name, NODE, &["7000=echo"]).strict())?;
        let mut args = "K8S_POD_NAMESPACE=default".to_owned();
        if with_uid {
            args += &format!(";K8S_POD_UID={}", known.uid());
        }
        let server = [TESTAPP, "serve", "--listen", "7000=echo"];
        let ip = podman.start(&name, &args, &server)?;
        kubelet.has_addresses(&mut known, std::slice::from_ref(&ip))?;
        let at = format!("{ip}:7000");
        sandbox.answers_at("client", &at)?;
        sandbox.connect("plain", &at, &[])?.refused()?;
        let near = sandbox.at("near", 7000)?;
        let served = opened(sandbox, NODE, "inbound", "near", &name)?;
        let connect = [TESTAPP, "connect", &near];
        podman
            .run(&[&["exec", &name], &connect[..]].concat())?
            .ok()?;
        let now = opened(sandbox, NODE, "inbound", "near", &name)?;
        ensure!(now > served, "{name} talks plaintext");
        let before = enrolled(sandbox)?;
        podman.remove(&name)?;
        kubelet.forget(&known)?;
        ensure!(enrolled(sandbox)? == before - 1.0, "{name} is enrolled");
    }
    Ok(())
}

/// `web` and `strict` go by containerd, and then the agent and IPAM know the sandbox's own only.
fn nothing_left(sandbox: &Sandbox, world: &World) -> anyhow::Result<()> {
    let kubelet = world.kubelet(sandbox);
    kubelet.remove(world.web.clone())?;
    kubelet.remove(world.strict.clone())?;
    ensure!(enrolled(sandbox)? == 1.0, "not only `near` is enrolled");
    let root = sandbox.node_root(NODE);
    let records = names(&root.join("state/pods"))?;
    ensure!(records.len() == 1, "the agent has {records:?}");
    let passed = names(&root.join("state/passed"))?;
    ensure!(passed.is_empty(), "notes are left: {passed:?}");
    let leases = names(&root.join("cni/data/culvert-sandbox"))?;
    let leases: Vec<_> = leases
        .iter()
        .filter(|name| name.starts_with("10."))
        .collect();
    ensure!(leases.len() == 1, "host-local has {leases:?}");
    let netns = names(world.containerd.space.netns())?;
    ensure!(netns.is_empty(), "namespaces are left: {netns:?}");
    Ok(())
}

fn names(dir: &std::path::Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

// SPDX-License-Identifier: Apache-2.0
//! Pods with several addresses and interfaces, and addresses, routes and links that come and go.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::hold::Held,
    capture::Capture,
    manifests::Pod,
    process::Running,
    require,
    sandbox::{Daemon, Plan, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);
const ECHO: u16 = 7000;
const WHOAMI: u16 = 7001;
/// On both families.
const LISTEN: [&str; 2] = ["[::]:7000=echo", "[::]:7001=whoami"];

#[test]
fn addresses() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(sandbox()?);
    suite.step("a second address is bound to and met", second_address);
    suite.step("an address goes while another is in use", address_goes);
    suite.step("a second interface has its own source", second_interface);
    suite.step("what has no route fails at once", no_route);
    suite.step("a family goes and comes back", family_goes);
    suite.step("lo goes down and up", lo_goes_down);
    suite.step("lo down lets no plaintext out", lo_down_is_closed);
    suite.finish()
}

/// `client` and `near` are on the first node, `server` on the second; `plain` and `far` are not meshed.
fn sandbox() -> anyhow::Result<Sandbox> {
    let plan = Plan::new("addresses")?;
    let app = plan.testapp().to_owned();
    let pod = |name, node| Pod::serving(name, node, &app, &LISTEN);
    let sandbox = plan
        .pod(&pod("client", "n1").meshed())?
        .pod(&pod("near", "n1").strict())?
        .pod(&pod("plain", "n1"))?
        .pod(&pod("far", "n1"))?
        .pod(&pod("server", "n2").strict())?
        .up()?;
    sandbox.answers("client", "server", ECHO)?;
    Ok(sandbox)
}

/// The server is strict: it lets in who proves an identity only.
fn meets_server(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (from, to) = (sandbox.ips("client")?, sandbox.ips("server")?);
    for (source, to) in from.into_iter().zip(to) {
        sandbox.met("client", to, source)?;
    }
    Ok(())
}

/// Of the node's own network, so that it is routed to. Nobody but the pod's own node knows whose it is.
fn second_address(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (second, prefix) in [("10.244.1.200", "/24"), ("fd00:244:0:1::200", "/64")] {
        let ip: IpAddr = second.parse()?;
        sandbox.add_address("near", &format!("{second}{prefix}"), "eth0")?;
        let to = SocketAddr::new(ip, ECHO).to_string();
        wait_for("the second address to be strict too", SOON, || {
            sandbox
                .connect("plain", &to, &["--patience", "2"])?
                .refused()
                .map(drop)
        })?;
        let server = match ip {
            IpAddr::V4(_) => sandbox.ip("server")?,
            IpAddr::V6(_) => sandbox.ip6("server")?,
        };
        let bind = SocketAddr::new(ip, 0).to_string();
        let to = SocketAddr::new(server, WHOAMI);
        let report = sandbox.whoami("near", to, &["--bind", &bind])?;
        let peer = report.whoami()?.peer.ip().to_canonical();
        ensure!(peer == ip, "bound to {ip}, the server saw {peer}");
        // Unbound connections begin from the first, as before.
        let first = match ip {
            IpAddr::V4(_) => sandbox.ip("near")?,
            IpAddr::V6(_) => of_kernel(sandbox, "near", server)?,
        };
        sandbox.met("near", server, first)?;
        sandbox.delete_address("near", &format!("{second}{prefix}"), "eth0")?;
    }
    Ok(())
}

/// What the kernel would begin an unsteered connection from.
fn of_kernel(sandbox: &Sandbox, pod: &str, to: IpAddr) -> anyhow::Result<IpAddr> {
    let to = to.to_string();
    let route: Value = sandbox.ip_in(pod, &["-j", "route", "get", &to])?.json()?;
    let source = route[0]["prefsrc"].as_str().context("no source")?;
    Ok(source.parse()?)
}

fn hold(sandbox: &Sandbox, from: &str, to: &str) -> anyhow::Result<Running> {
    let mut hold = sandbox.spawn_app(from, &["hold", to])?;
    works(&mut hold, "at first")?;
    Ok(hold)
}

fn works(hold: &mut Running, when: &str) -> anyhow::Result<()> {
    let held: Held = hold.next(SOON)?;
    ensure!(held.working == 1, "{when}: {held:?}");
    Ok(())
}

fn address_goes(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut holds = Vec::new();
    for to in [sandbox.at("server", ECHO)?, sandbox.at6("server", ECHO)?] {
        holds.push(hold(sandbox, "client", &to)?);
    }
    for round in ["first", "second"] {
        for address in ["10.244.1.210/24", "fd00:244:0:1::210/64"] {
            sandbox.add_address("client", address, "eth0")?;
        }
        for hold in &mut holds {
            hold.say(round)?;
            works(hold, "with another address")?;
        }
        for address in ["10.244.1.210/24", "fd00:244:0:1::210/64"] {
            sandbox.delete_address("client", address, "eth0")?;
        }
        for hold in &mut holds {
            hold.say(round)?;
            works(hold, "without it")?;
        }
    }
    for hold in holds {
        hold.finish(SOON)?.ok()?;
    }
    meets_server(sandbox)
}

/// As Multus would add one: a link of its own between two pods, with a network behind it.
fn second_interface(sandbox: &Sandbox) -> anyhow::Result<()> {
    let far = sandbox.pod("far");
    let far = far.path().file_name().and_then(|name| name.to_str());
    let far = far.context("the namespace has no name")?.to_owned();
    let peer = [
        "link", "add", "net1", "type", "veth", "peer", "name", "net1", "netns",
    ];
    sandbox.ip_in("client", &[&peer[..], &[&far]].concat())?;
    for (pod, host) in [("client", "1"), ("far", "2")] {
        sandbox.ip_in(pod, &["link", "set", "net1", "up"])?;
        sandbox.add_address(pod, &format!("10.99.0.{host}/24"), "net1")?;
        sandbox.add_address(pod, &format!("fd99::{host}/64"), "net1")?;
    }
    for (family, behind, via) in [
        ("-4", "198.51.100.1/32", "10.99.0.2"),
        ("-6", "2001:db8:99::1/128", "fd99::2"),
    ] {
        sandbox.add_address("far", behind, "lo")?;
        let route = [family, "route", "add", behind, "via", via, "dev", "net1"];
        sandbox.ip_in("client", &route)?;
    }
    let behind = [
        ("10.99.0.2", "10.99.0.1"),
        ("fd99::2", "fd99::1"),
        ("198.51.100.1", "10.99.0.1"),
        ("2001:db8:99::1", "fd99::1"),
    ];
    for (to, source) in behind {
        let (to, source) = (to.parse()?, source.parse()?);
        wait_for("the routes to be followed", SOON, || {
            sandbox.met("client", to, source)
        })?;
    }
    // By the first interface nothing has changed.
    meets_server(sandbox)?;
    let steered = steered_on_second(sandbox);
    sandbox.ip_in("client", &["link", "del", "net1"])?;
    steered?;
    meets_server(sandbox)
}

/// What comes in by the second interface is steered too.
fn steered_on_second(sandbox: &Sandbox) -> anyhow::Result<()> {
    let before = sandbox.steering("n1", "client", "steered_in")?;
    for to in ["10.99.0.1:7001", "[fd99::1]:7001"] {
        let to: SocketAddr = to.parse()?;
        let report = sandbox.whoami("far", to, &[])?;
        ensure!(report.whoami()?.peer.ip() != to.ip(), "{report:?}");
    }
    let after = sandbox.steering("n1", "client", "steered_in")?;
    ensure!(
        after >= before + 2.0,
        "{before} before and {after} after: not both were steered"
    );
    Ok(())
}

/// A pod without a default route of a family learns at once that a destination is out of reach, as
/// unsteered, and tries the other family.
fn no_route(sandbox: &Sandbox) -> anyhow::Result<()> {
    let shown = sandbox.ip_in("client", &["-6", "route", "show", "default"])?;
    let words: Vec<_> = shown.stdout.split_whitespace().collect();
    let via = *words.get(2).context("no default route")?;
    sandbox.ip_in("client", &["-6", "route", "del", "default"])?;
    let to = sandbox.at6("server", ECHO)?;
    let failed = wait_for("the route to be gone", SOON, || {
        sandbox.unreachable("client", &to)
    });
    let near = sandbox.met("client", sandbox.ip6("near")?, sandbox.ip6("client")?);
    let add = ["-6", "route", "add", "default", "via", via, "dev", "eth0"];
    sandbox.ip_in("client", &add)?;
    failed?;
    near?;
    wait_for("the route to be back", SOON, || {
        sandbox.connect("client", &to, &[])?.all().map(drop)
    })
}

fn family_goes(sandbox: &Sandbox) -> anyhow::Result<()> {
    let ip = sandbox.ip6("client")?;
    let address = format!("{ip}/64");
    let route = sandbox.ip_in("client", &["-6", "route", "show", "default"])?;
    let to = sandbox.at6("server", ECHO)?;
    let mut other = hold(sandbox, "client", &sandbox.at("server", ECHO)?)?;
    let capture = Capture::start(&sandbox.node("n1"))?;
    sandbox.delete_address("client", &address, "eth0")?;
    let gone = wait_for("the family to be gone", SOON, || {
        sandbox.unreachable("client", &to)
    });
    let said = other.say("over the other family");
    let works = said.and_then(|()| works(&mut other, "without IPv6"));
    sandbox.add_address("client", &address, "eth0")?;
    if !route.stdout.trim().is_empty() {
        let words: Vec<_> = route.stdout.split_whitespace().collect();
        let via = *words.get(2).context("no gateway")?;
        let replace = [
            "-6", "route", "replace", "default", "via", via, "dev", "eth0",
        ];
        sandbox.ip_in("client", &replace)?;
    }
    wait_for("the family to be back", SOON, || {
        sandbox.met("client", sandbox.ip6("server")?, ip)
    })?;
    let clear = capture.stop()?.count(b"ping");
    ensure!(clear == 0, "{clear} packets were in the clear");
    gone.and(works)?;
    other.finish(SOON)?.ok()?;
    Ok(())
}

fn lo_goes_down(sandbox: &Sandbox) -> anyhow::Result<()> {
    let mut held = hold(sandbox, "client", &sandbox.at6("server", ECHO)?)?;
    for round in ["one", "two"] {
        sandbox.ip_in("client", &["link", "set", "lo", "down"])?;
        let link = || {
            let shown = sandbox.ip_in("client", &["link", "show", "lo", "up"])?;
            ensure!(!shown.stdout.is_empty(), "lo is down");
            Ok::<_, anyhow::Error>(())
        };
        wait_for("lo to be set up again", SOON, link)?;
        for to in [sandbox.at("server", ECHO)?, sandbox.at6("server", ECHO)?] {
            wait_for("the pod to be steered again", SOON, || {
                let report = sandbox.connect("client", &to, &["--patience", "3"])?;
                report.all().map(drop)
            })?;
        }
        held.say(round)?;
        works(&mut held, "after lo was down")?;
    }
    held.finish(SOON)?.ok()?;
    Ok(())
}

/// The worst case: nobody is there to put anything back.
fn lo_down_is_closed(sandbox: &Sandbox) -> anyhow::Result<()> {
    sandbox.answers("server", "near", ECHO)?;
    let mut from_pod = hold(sandbox, "near", &sandbox.at6("server", ECHO)?)?;
    // Here it is the answers of the pod's own application that would be in the clear.
    let mut to_pod = hold(sandbox, "server", &sandbox.at6("near", ECHO)?)?;
    sandbox.kill("agent", Some("n1"), true)?;
    let capture = Capture::start(&sandbox.node("n1"))?;
    sandbox.ip_in("near", &["link", "set", "lo", "down"])?;
    let marker = "marker-with-lo-down";
    from_pod.say(marker)?;
    to_pod.say(marker)?;
    let connect = sandbox.connect("near", &sandbox.at6("server", ECHO)?, &["--patience", "2"]);
    let answered = connect.and_then(|report| report.refused().map(drop));
    sandbox.start("agent", Some("n1"))?;
    sandbox.ready(Daemon::Agent("n1"))?;
    works(&mut from_pod, "when lo is up again")?;
    works(&mut to_pod, "when lo is up again")?;
    let clear = capture.stop()?.count(marker.as_bytes());
    ensure!(clear == 0, "{clear} packets were in the clear");
    answered?;
    meets_server(sandbox)
}

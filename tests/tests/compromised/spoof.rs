// SPDX-License-Identifier: Apache-2.0
//! Packets from foreign addresses, out of the pod: a socket for dialling the application may have
//! any source, and be bound to any device.

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::turned::Outcome, capture::Capture, process::Running, sandbox::Sandbox, wait::wait_for,
};

use crate::{
    LATER, SOON,
    stage::{As, Stage},
};

/// The foreign address, as it stands in a packet.
const FOREIGN: &[u8] = &[192, 0, 2, 7];

pub fn spoofs(sandbox: &Sandbox) -> anyhow::Result<()> {
    let stage = Stage::new(sandbox)?;
    let mut turned = stage.start(sandbox, As::Proxy)?;
    let _: Outcome = turned.next(LATER)?;
    let (end, packets) = spoof(sandbox, &mut turned)?;
    ensure!(
        packets == 0,
        "{packets} packets from a foreign address left the pod"
    );
    ensure!(end != "ok", "a neighbour answered a foreign address");
    unprotected(sandbox, &mut turned)?;
    let (_, packets) = spoof(sandbox, &mut turned)?;
    ensure!(packets == 0, "{packets} packets after the agent's repair");
    turned.finish(SOON)?.ok()?;
    sandbox.answers("mesh", "victim", 7000)
}

/// How the attempt ended, and how many packets of it came to the node.
fn spoof(sandbox: &Sandbox, turned: &mut Running) -> anyhow::Result<(String, usize)> {
    let capture = Capture::only(&sandbox.node("n1"), FOREIGN)?;
    turned.say("spoof")?;
    let end: String = turned.next(SOON)?;
    Ok((end, capture.stop()?.count(FOREIGN)))
}

/// Shows what keeps the packets in, while the agent can't put it back; and that it does afterwards.
fn unprotected(sandbox: &Sandbox, turned: &mut Running) -> anyhow::Result<()> {
    let caught = ["local", "default", "dev", "eth0", "table", "17100"];
    sandbox.stall("agent", Some("n1"))?;
    let deleted = sandbox.ip_in("victim", &[&["route", "del"], &caught[..]].concat());
    let attempt = spoof(sandbox, turned);
    sandbox.unstall("agent", Some("n1"))?;
    deleted.context("delete the route")?.ok()?;
    let (end, packets) = attempt?;
    ensure!(packets > 0, "nothing was sent without the route: {end}");
    wait_for("the agent to put the route back", SOON, || {
        let routes = sandbox.ip_in("victim", &["route", "show", "table", "17100"])?;
        ensure!(routes.stdout.contains("dev eth0"), "{}", routes.stdout);
        Ok::<_, anyhow::Error>(())
    })
}

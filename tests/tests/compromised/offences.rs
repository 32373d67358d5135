// SPDX-License-Identifier: Apache-2.0
//! The agent's protocol, broken, and spoken by others.

use std::{fs, process::Command};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::{peer::Answers, turned::Outcome},
    process::Running,
    sandbox::Sandbox,
    wait::wait_for,
};

use crate::{
    AGENT, LATER, PROXY, SOON,
    stage::{As, Stage},
};

/// An offence, how its connection ends, and what counts it.
type Offence = (
    &'static str,
    &'static str,
    Option<(&'static str, &'static [(&'static str, &'static str)])>,
);

const OFFENCES: &[Offence] = &[
    (
        "no hello",
        "eof",
        Some((
            "culvert_agent_proxy_connections_refused_total",
            &[("reason", "handshake")],
        )),
    ),
    (
        "silence",
        "eof",
        Some((
            "culvert_agent_proxy_connections_refused_total",
            &[("reason", "handshake")],
        )),
    ),
    ("too long", "eof", None),
    ("too many descriptors", "eof", None),
    ("descriptors nobody asked for", "timeout", None),
    (
        "not JSON",
        "eof",
        Some(("culvert_agent_proxy_messages_unreadable_total", &[])),
    ),
    (
        "of a later release",
        "timeout",
        Some(("culvert_agent_proxy_messages_unreadable_total", &[])),
    ),
    (
        "acknowledges what was not sent",
        "timeout",
        Some(("culvert_agent_proxy_nacks_total", &[])),
    ),
    (
        "a key that is no memfd",
        "timeout",
        Some((
            "culvert_agent_keys_refused_total",
            &[("reason", "not_memfd")],
        )),
    ),
    (
        "wants without end",
        "timeout",
        Some(("culvert_agent_sockets_throttled_total", &[])),
    ),
];

fn descriptors(sandbox: &Sandbox) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", sandbox.pid(AGENT)?))?.count())
}

pub fn offences(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (agent, proxy) = (sandbox.pid(AGENT)?, sandbox.pid(PROXY)?);
    let before = descriptors(sandbox)?;
    let stage = Stage::new(sandbox)?;
    let mut turned = stage.start(sandbox, As::Proxy)?;
    let _: Outcome = turned.next(LATER)?;
    for (offence, end, counted) in OFFENCES {
        commit(sandbox, &mut turned, offence, end, *counted)
            .with_context(|| (*offence).to_owned())?;
    }
    too_many(sandbox, &mut turned)?;
    turned.finish(SOON)?.ok()?;
    wait_for(
        "the agent to be left with one proxy and no stray descriptor",
        SOON,
        || {
            let proxies = sandbox.metric(AGENT, "culvert_agent_proxy_connections", &[])?;
            let now = descriptors(sandbox)?;
            ensure!(
                proxies == 1.0 && now <= before + 4,
                "{proxies} proxies, {now} descriptors, {before} before"
            );
            Ok::<_, anyhow::Error>(())
        },
    )?;
    ensure!(
        sandbox.pid(AGENT)? == agent && sandbox.pid(PROXY)? == proxy,
        "a process was restarted"
    );
    sandbox.answers("mesh", "victim", 7000)
}

fn commit(
    sandbox: &Sandbox,
    turned: &mut Running,
    offence: &str,
    end: &str,
    counted: Option<(&str, &[(&str, &str)])>,
) -> anyhow::Result<()> {
    let count = || match counted {
        Some((name, labels)) => sandbox.metric(AGENT, name, labels),
        None => Ok(0.0),
    };
    let before = count()?;
    turned.say(offence)?;
    let ended: String = turned.next(LATER)?;
    ensure!(
        ended == end,
        "the connection ended with {ended}, expected {end}"
    );
    ensure!(
        counted.is_none() || count()? > before,
        "it was not counted by {counted:?}"
    );
    Ok(())
}

/// Eight at most, of which one is the real proxy.
fn too_many(sandbox: &Sandbox, turned: &mut Running) -> anyhow::Result<()> {
    for _ in 0..9 {
        turned.say("connect")?;
        let _: String = turned.next(SOON)?;
    }
    let labels = [("reason", "too_many")];
    sandbox.metric_reaches(
        AGENT,
        "culvert_agent_proxy_connections_refused_total",
        &labels,
        1.0,
    )?;
    turned.say("let go")?;
    let _: String = turned.next(SOON)?;
    Ok(())
}

/// Root is not the proxy, nor is any other user.
pub fn other_users(sandbox: &Sandbox) -> anyhow::Result<()> {
    let socket = sandbox.node_root("n1").join("run/proxy.sock");
    let hello = r#"{"type":"hello","versions":{"newest":1,"oldest":1}}"#;
    for uid in ["0", "65534", "2101"] {
        let labels = [("reason", "uid")];
        let before = sandbox.metric(
            AGENT,
            "culvert_agent_proxy_connections_refused_total",
            &labels,
        )?;
        let mut peer = Command::new("setpriv");
        peer.args([&format!("--reuid={uid}"), "--clear-groups"]);
        peer.arg(sandbox.testapp())
            .arg("peer")
            .arg(&socket)
            .arg(hello);
        let answers: Answers = culvert_tests::process::run(&mut peer, SOON)?.json()?;
        ensure!(
            answers.messages.is_empty(),
            "uid {uid} was told {:?}",
            answers.messages
        );
        sandbox.metric_reaches(
            AGENT,
            "culvert_agent_proxy_connections_refused_total",
            &labels,
            before + 1.0,
        )?;
    }
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0
//! What a proxy can't do, and what it can.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, ensure};
use culvert_tests::{
    app::turned::{Outcome, rights},
    sandbox::Sandbox,
};

use crate::{
    LATER, PROXY, SOON,
    stage::{As, Stage, secrets},
};

/// Refused to a proxy that was taken over, and what the same comes to without the protection.
const REFUSED: &[(&str, &str, &str)] = &[
    ("a raw socket", "EPERM", "ok"),
    ("a raw IPv6 socket", "EPERM", "ok"),
    ("a packet socket", "EPERM", "ok"),
    ("a netlink socket", "EPERM", "ok"),
    ("a mark on a new socket", "EPERM", "ok"),
    ("transparency of a new socket", "EPERM", "ok"),
    ("unshare", "EPERM", "ok"),
    ("a user namespace", "EPERM", "EINVAL"),
    ("setns", "EPERM", "ok"),
    ("bpf", "EPERM", "ok"),
    ("mount", "EPERM", "ok"),
    ("execve", "EPERM", "ENOENT"),
    ("io_uring", "EPERM", "EFAULT"),
    ("fork", "EPERM", "ok"),
    ("trace the agent", "EPERM", "ok"),
    ("trace the proxy", "EPERM", "ok"),
    ("the agent's memory", "EACCES", "ok"),
    ("the proxy's memory", "EACCES", "ok"),
    ("the agent's descriptors", "EACCES", "ok"),
    ("the proxy's descriptors", "EACCES", "ok"),
    ("the agent's namespaces", "EACCES", "ok"),
    ("a signal to the agent", "EPERM", "ok"),
    ("the plugin's socket", "EACCES", "ok"),
    ("the agent's place", "EACCES", "ok"),
    ("leg: a mark", "EPERM", "ok"),
    ("leg: transparency", "EPERM", "ok"),
    ("leg: the pod's namespace", "EPERM", "ok"),
    ("leg: take the pod's interface down", "EPERM", "ok"),
    (
        "leg: bind a foreign address",
        "EADDRNOTAVAIL",
        "EADDRNOTAVAIL",
    ),
    (
        "leg: dial from a foreign address",
        "ENETUNREACH",
        "ENETUNREACH",
    ),
    ("leg: be a server on a privileged port", "EACCES", "ok"),
    ("dial: another mark", "EPERM", "ok"),
    (
        "dial: a neighbour from a foreign IPv6 address",
        "ENETUNREACH",
        "ENETUNREACH",
    ),
];

/// What a proxy that was taken over can do: ARCHITECTURE.md says so.
const POSSIBLE: &[&str] = &[
    "a signal to the proxy",
    "leg: bind to a device",
    "leg: dial another pod in plaintext",
    "leg: dial a server on the pod's loopback",
    "leg: be a server on the pod's loopback",
    "dial: bind to a device",
    "dial: the pod's server from any address",
    "dial: a server on the pod's loopback",
    // By way of the real proxy, which takes it for the pod's own: the address stays behind.
    "dial: another pod from any address",
];

pub fn attempts(sandbox: &Sandbox) -> anyhow::Result<()> {
    let stage = Stage::new(sandbox)?;
    let mut outcomes = Vec::new();
    for who in [As::Proxy, As::Powerful] {
        let mut running = stage.start(sandbox, who)?;
        let outcome: Outcome = running.next(LATER).with_context(|| format!("{who:?}"))?;
        running.finish(SOON)?.ok()?;
        outcomes.push(outcome);
    }
    let real = fs::read_to_string(format!("/proc/{}/status", sandbox.pid(PROXY)?))?;
    ensure!(
        outcomes[0].rights == rights(&real),
        "{:?}, the proxy is {:?}",
        outcomes[0].rights,
        rights(&real)
    );
    let mut expected: BTreeMap<String, [String; 2]> = REFUSED
        .iter()
        .map(|(what, turned, powerful)| {
            (
                (*what).to_owned(),
                [turned, powerful].map(|s| (*s).to_owned()),
            )
        })
        .collect();
    expected.extend(
        POSSIBLE
            .iter()
            .map(|what| ((*what).to_owned(), ["ok"; 2].map(str::to_owned))),
    );
    let secret = |path: &Path| format!("read {}", path.display());
    expected.extend(
        secrets(sandbox)
            .iter()
            .map(|path| (secret(path), ["EACCES", "ok"].map(str::to_owned))),
    );
    compare(&expected, &outcomes)?;
    sandbox.answers("mesh", "victim", 7000)
}

fn compare(expected: &BTreeMap<String, [String; 2]>, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for what in expected.keys().chain(outcomes[0].attempts.keys()) {
        let got = [0, 1].map(|n| outcomes[n].attempts.get(what).cloned().unwrap_or_default());
        if expected.get(what) != Some(&got) && !wrong.contains(&(what, got.clone())) {
            wrong.push((what, got));
        }
    }
    ensure!(
        wrong.is_empty(),
        "taken over and powerful, unlike what was expected: {wrong:#?}"
    );
    Ok(())
}

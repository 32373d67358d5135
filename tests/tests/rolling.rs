// SPDX-License-Identifier: Apache-2.0
//! A rolling update under load: every replica of a service is replaced, one after another, while
//! HTTP/1.1 and gRPC clients go on, and no request fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::ensure;
use culvert_tests::{
    process::Running,
    programs::{
        CLIENT, python,
        replicas::{CALLS, REPLICAS, Shares, deployment, plan, ready},
        source,
    },
    require,
    sandbox::{Daemon, Sandbox},
    suite::Suite,
    wait::wait_for,
};
use serde::Deserialize;

const LONG: Duration = Duration::from_secs(60);
/// Of each kind.
const PER_SECOND: &str = "200";

#[test]
fn rolling() -> anyhow::Result<()> {
    if !require::root()? || !require::python()? {
        return Ok(());
    }
    let mut suite = Suite::new(plan("rolling")?.up()?);
    suite.step("a rolling update fails no request", updated);
    suite.step("proxies that are replaced fail no request", proxies);
    suite.step("replicas that come and go fail no request", scaled);
    suite.finish()
}

/// What became of the requests of a kind.
#[derive(Debug, Deserialize)]
struct Done {
    ok: u32,
    failed: BTreeMap<String, u32>,
    replicas: Shares,
    /// How often a kept connection was closed on its client.
    reconnects: u32,
}

#[derive(Debug, Deserialize)]
struct Load {
    http: Done,
    grpc: Done,
}

fn load(sandbox: &Sandbox) -> anyhow::Result<Running> {
    let host = sandbox.service_ip(CLIENT, CALLS)?.to_string();
    let command = [&*python(), &*source("load.py"), &*host, PER_SECOND];
    let mut load = sandbox.spawn(CLIENT, &command)?;
    let begun = load.line(LONG)?;
    ensure!(begun == "begun", "it said {begun}");
    Ok(load)
}

/// Ends it. None has failed, and each of these pods has answered.
fn none_failed(mut load: Running, pods: &BTreeSet<String>) -> anyhow::Result<()> {
    load.say("")?;
    let load: Load = load.finish(LONG)?.json()?;
    for (kind, done) in [("HTTP/1.1", load.http), ("gRPC", load.grpc)] {
        let Done {
            ok,
            failed,
            replicas,
            reconnects,
        } = done;
        eprintln!("    {kind}: {ok} done, {reconnects} reconnects, {replicas:?}");
        ensure!(failed.is_empty(), "{kind}: {failed:?}, {ok} did not fail");
        let silent = pods.iter().find(|pod| !replicas.contains_key(*pod));
        ensure!(silent.is_none(), "{kind}: {silent:?} never answered");
    }
    Ok(())
}

/// Waits for a full set of pods of which these are none.
fn replaced(sandbox: &Sandbox, old: &BTreeSet<String>) -> anyhow::Result<BTreeSet<String>> {
    wait_for("the other pods", LONG, || {
        let now = ready(sandbox)?;
        ensure!(now.len() == REPLICAS && now.is_disjoint(old), "{now:?}");
        Ok::<_, anyhow::Error>(now)
    })
}

fn updated(sandbox: &Sandbox) -> anyhow::Result<()> {
    let first = replaced(sandbox, &BTreeSet::new())?;
    let load = load(sandbox)?;
    sandbox.apply_object(&deployment("second"))?;
    let second = replaced(sandbox, &first)?;
    sandbox.apply_object(&deployment("third"))?;
    replaced(sandbox, &second)?;
    none_failed(load, &(&first | &second))
}

/// With SIGTERM, the server's and the client's.
fn proxies(sandbox: &Sandbox) -> anyhow::Result<()> {
    let load = load(sandbox)?;
    for node in ["n2", "n1"] {
        let started = sandbox.pid(Daemon::Proxy(node))?;
        sandbox.terminate("proxy", Some(node))?;
        sandbox.replaced(Daemon::Proxy(node), started)?;
        wait_for("requests through the next one", LONG, || {
            let done = sandbox.metric(Daemon::Proxy(node), "response_total", &[])?;
            ensure!(done > 100.0, "{done}");
            Ok::<_, anyhow::Error>(())
        })?;
    }
    none_failed(load, &BTreeSet::new())
}

fn scaled(sandbox: &Sandbox) -> anyhow::Result<()> {
    let load = load(sandbox)?;
    let mut object = deployment("third");
    for replicas in [1, 4, REPLICAS] {
        object["spec"]["replicas"] = replicas.into();
        sandbox.apply_object(&object)?;
        wait_for("the replicas", LONG, || {
            let now = ready(sandbox)?;
            ensure!(now.len() == replicas, "{now:?}");
            Ok::<_, anyhow::Error>(())
        })?;
    }
    none_failed(load, &BTreeSet::new())
}

// SPDX-License-Identifier: Apache-2.0
//! A pod that runs already, with connections open, joins the mesh and leaves it.

use anyhow::ensure;
use culvert_tests::{
    app::stream::Streamed,
    cluster::{Cluster, pods::Pod},
    process::Running,
    runtime::image::TESTAPP,
    wait::wait_for,
};

use crate::{SOON, install::rules, mesh};

pub fn joins_and_leaves(cluster: &Cluster) -> anyhow::Result<()> {
    let late = cluster.ready("outside", "app=late")?;
    let plain = cluster.ready("outside", "app=plain")?;
    let mut inward = cluster.start(&plain, &[TESTAPP, "stream", &late.at(7000)])?;
    let mut outward = cluster.start(&late, &[TESTAPP, "stream", mesh::WEB_ECHO])?;
    let mut streams = [&mut inward, &mut outward];
    for stream in &mut streams {
        works(stream)?;
    }

    annotate(cluster, "culvert.io/inject=enabled")?;
    cluster.meshed("outside", "app=late", true)?;
    for stream in &mut streams {
        flows(stream)?;
    }
    unmoved(cluster, &late)?;
    let before = proved(cluster, &late)?;
    cluster
        .connect(&late, mesh::WEB_ECHO, &["--count", "20"])?
        .all()?;
    let client = cluster.ready("shop", "app=client")?;
    cluster
        .connect(&client, &late.at(7000), &["--count", "5"])?
        .all()?;
    cluster
        .connect(&plain, &late.at(7000), &["--count", "5"])?
        .all()?;
    let after = proved(cluster, &late)?;
    ensure!(
        after.0 > before.0 && after.1 > before.1,
        "{before:?} and then {after:?}"
    );

    annotate(cluster, "culvert.io/inject-")?;
    cluster.meshed("outside", "app=late", false)?;
    for stream in &mut streams {
        flows(stream)?;
    }
    unmoved(cluster, &late)?;
    cluster
        .connect(&late, mesh::WEB_ECHO, &["--count", "20"])?
        .all()?;
    let last = proved(cluster, &late)?;
    ensure!(
        last.0 == after.0,
        "it is still meshed: {after:?} and then {last:?}"
    );
    for stream in [inward, outward] {
        let end: Streamed = stream.finish(SOON)?.json_of_last_line()?;
        ensure!(end.broken.is_empty(), "{end:?}");
    }
    wait_for("its rules to go", SOON, || {
        let left = rules(cluster, late.node, late.ip)?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}

fn annotate(cluster: &Cluster, annotation: &str) -> anyhow::Result<()> {
    cluster.kubectl(&["-n", "outside", "annotate", "pod", "late", annotation])?;
    Ok(())
}

/// No container was restarted, and it is the same pod.
fn unmoved(cluster: &Cluster, pod: &Pod) -> anyhow::Result<()> {
    let now = cluster.ready(&pod.namespace, &format!("app={}", pod.name))?;
    ensure!(
        now.uid() == pod.uid() && now.containers() == pod.containers(),
        "{:?}",
        now.containers()
    );
    Ok(())
}

/// What it proved who it is to, and who proved it to it.
fn proved(cluster: &Cluster, late: &Pod) -> anyhow::Result<(f64, f64)> {
    let web = crate::NODES.iter().map(|node| cluster.proxy_metrics(*node));
    let web: Vec<_> = web.collect::<anyhow::Result<_>>()?;
    let out = web
        .iter()
        .map(|scrape| mesh::proved(scrape, "web", "late"))
        .sum();
    Ok((
        out,
        mesh::proved(&cluster.proxy_metrics(late.node)?, "late", "client"),
    ))
}

fn works(stream: &mut Running) -> anyhow::Result<Streamed> {
    let told: Streamed = stream.next(SOON)?;
    ensure!(told.broken.is_empty(), "{told:?}");
    Ok(told)
}

/// Bytes come back, now and again.
pub fn flows(stream: &mut Running) -> anyhow::Result<()> {
    let mut ask = || {
        stream.say("how is it?")?;
        works(stream)
    };
    let before = ask()?;
    wait_for("bytes", SOON, || {
        let now = ask()?;
        ensure!(now.least > before.least + (1 << 16), "{now:?}");
        Ok(())
    })
}

// SPDX-License-Identifier: Apache-2.0
//! What a large cluster costs: 5,000 pods and 500 services, as an API server tells of them.

mod cluster;
mod memory;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use culvert_kubernetes::{Scope, Source};
use tokio::time::timeout;

use self::cluster::{Cluster, PODS, SERVICES};

const PATIENCE: Duration = Duration::from_mins(1);

const MIB: usize = 1 << 20;

/// What 5,000 pods and 500 services with their slices may take: half as much again as they took
/// when this was written.
const MOST: usize = 64 * MIB;

/// Of a node with 110 pods in a cluster of 200 namespaces, with the connections and this API
/// server's side of them: twice as much.
const MOST_ON_NODE: usize = 6 * MIB;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cluster_costs_little_and_its_changes_less() -> Result<()> {
    let cluster = Cluster::start(PODS).await?;
    let before = memory::now();
    let begun = Instant::now();
    let source = Source::watch(cluster.client().await?, Scope::Cluster);
    timeout(PATIENCE, source.synced()).await?;
    let first = begun.elapsed();
    let (taken, peak) = (memory::now() - before, memory::peak() - before);
    println!(
        "{PODS} pods ({} MiB of JSON): {} MiB, {} MiB at most meanwhile, after {first:?}",
        cluster.bytes() / MIB,
        taken / MIB,
        peak / MIB
    );
    let objects = Arc::clone(&source.objects().borrow());
    ensure!(objects.pods.len() == PODS && objects.services.len() == SERVICES);
    drop(objects);
    ensure!(taken < MOST, "{taken} bytes");

    let changed = changes(&cluster, &source).await?;
    println!("a pod's change is told after {changed:?}");
    ensure!(changed < first / 10, "{changed:?} against {first:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_node_costs_next_to_nothing() -> Result<()> {
    let cluster = Cluster::start(110).await?;
    let before = memory::now();
    let source = Source::watch(cluster.client().await?, Scope::Node("n0".into()));
    timeout(PATIENCE, source.synced()).await?;
    let taken = memory::now() - before;
    println!("110 pods on a node: {} KiB", taken >> 10);
    ensure!(source.objects().borrow().pods.len() == 110);
    ensure!(taken < MOST_ON_NODE, "{taken} bytes");
    Ok(())
}

/// The median of how long changes of one pod take until they are told.
async fn changes(cluster: &Cluster, source: &Source) -> Result<Duration> {
    let mut objects = source.objects();
    let mut took = Vec::new();
    for nth in 0..50 {
        // What was told last is over: a change right after it waits for those that come with it.
        tokio::time::sleep(Duration::from_millis(60)).await;
        let label = nth.to_string();
        objects.mark_unchanged();
        let begun = Instant::now();
        cluster.label(nth, &label)?;
        timeout(PATIENCE, objects.changed()).await??;
        took.push(begun.elapsed());
        let pod = objects
            .borrow_and_update()
            .pods
            .get(&cluster::key(nth))
            .cloned();
        let labels = pod
            .and_then(|pod| pod.metadata.labels.clone())
            .context("no pod")?;
        ensure!(labels.get("nth") == Some(&label), "{labels:?}");
    }
    took.sort();
    Ok(took[took.len() / 2])
}

// SPDX-License-Identifier: Apache-2.0
//! What a change costs in a large cluster: 5,000 pods and 500 services with their slices.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use culvert_api::workload::{NetnsCookie, PodUid};
use culvert_control::index::{Destination, Index, Report, Reporter};
use culvert_manifests::{NamespacedName, Objects};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const PODS: usize = 5_000;
const SERVICES: usize = 500;
const NODES: usize = 100;
const NAMESPACES: usize = 50;

/// All reports may take as long as so many changes of a pod, each of which makes a new view.
const MOST_CHANGES: u32 = 5;

fn read<T: DeserializeOwned>(value: Value) -> Result<Arc<T>> {
    Ok(Arc::new(serde_json::from_value(value)?))
}

fn namespace(nth: usize) -> String {
    format!("team-{}", nth % NAMESPACES)
}

fn key(kind: &str, nth: usize) -> NamespacedName {
    (namespace(nth), format!("{kind}-{nth}"))
}

fn address(nth: usize) -> String {
    format!(
        "10.{}.{}.{}",
        1 + nth / 60_000,
        nth / 250 % 240,
        1 + nth % 250
    )
}

fn message(nth: usize) -> String {
    format!("netns={nth} generation=1 addresses={}", address(nth))
}

/// Of the service `nth % SERVICES`, whose namespace it is in.
fn pod(nth: usize, label: &str, ready: bool) -> Value {
    json!({
        "metadata": {
            "name": format!("pod-{nth}"), "namespace": namespace(nth), "uid": format!("uid-{nth}"),
            "labels": {"app": format!("web-{}", nth % SERVICES), "label": label},
            "annotations": {"config.linkerd.io/opaque-ports": "25,3306,9000-9100"},
            "resourceVersion": "1",
        },
        "spec": {
            "nodeName": format!("n{}", nth % NODES), "serviceAccountName": "web",
            "containers": [{"name": "web", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running", "podIP": address(nth), "podIPs": [{"ip": address(nth)}],
            "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }},
                {"type": "culvert.io/Meshed", "status": "True", "message": message(nth)},
            ],
        },
    })
}

fn service(nth: usize) -> Value {
    json!({
        "metadata": {"name": format!("service-{nth}"), "namespace": namespace(nth)},
        "spec": {
            "clusterIP": format!("10.96.{}.{}", nth / 250, 1 + nth % 250),
            "ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}],
        },
    })
}

fn slice(nth: usize) -> Value {
    let endpoints = (0..PODS / SERVICES).map(|pod| {
        let pod = pod * SERVICES + nth;
        json!({
            "addresses": [address(pod)], "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": namespace(pod), "name": format!("pod-{pod}")},
        })
    });
    json!({
        "metadata": {
            "name": format!("slice-{nth}"), "namespace": namespace(nth),
            "labels": {"kubernetes.io/service-name": format!("service-{nth}")},
        },
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 8081}],
    })
}

fn all<T: DeserializeOwned>(
    count: usize,
    kind: &str,
    one: impl Fn(usize) -> Value,
) -> Result<BTreeMap<NamespacedName, Arc<T>>> {
    (0..count)
        .map(|nth| Ok((key(kind, nth), read(one(nth))?)))
        .collect()
}

fn cluster() -> Result<Objects> {
    let zone = |nth: usize| json!({"topology.kubernetes.io/zone": format!("z{}", nth % 3)});
    let node = |nth: usize| json!({"metadata": {"name": format!("n{nth}"), "labels": zone(nth)}});
    let named = |nth: usize| json!({"metadata": {"name": namespace(nth)}});
    Ok(Objects {
        namespaces: (0..NAMESPACES)
            .map(|nth| Ok((namespace(nth), read(named(nth))?)))
            .collect::<Result<_>>()?,
        nodes: (0..NODES)
            .map(|nth| Ok((format!("n{nth}"), read(node(nth))?)))
            .collect::<Result<_>>()?,
        pods: all(PODS, "pod", |nth| pod(nth, "", true))?,
        services: all(SERVICES, "service", service)?,
        endpoint_slices: Some(all(SERVICES, "slice", slice)?),
        ..Objects::default()
    })
}

fn reset(index: &mut Index, objects: &Objects) -> Duration {
    let objects = Arc::new(objects.clone());
    let begun = Instant::now();
    index.reset(objects);
    begun.elapsed()
}

/// The least that a change took of those that `change` makes to one pod each.
fn changes(
    index: &mut Index,
    objects: &mut Objects,
    change: impl Fn(usize) -> Value,
) -> Result<Duration> {
    let mut least = Duration::MAX;
    for nth in 0..31 {
        objects.pods.insert(key("pod", nth), read(change(nth))?);
        least = least.min(reset(index, objects));
    }
    Ok(least)
}

/// What it takes for the proxies of all nodes to say again what they said to the control before.
fn reports(index: &mut Index, stream: &Arc<()>, generation: u64) -> Result<Duration> {
    let begun = Instant::now();
    for nth in 0..PODS {
        let report = Report {
            uid: PodUid(format!("uid-{nth}")),
            cookie: NetnsCookie(u64::try_from(nth)?),
            generation,
            steered: true,
            reporter: Reporter::of(stream),
        };
        index.report(&format!("n{}", nth % NODES), &report)?;
    }
    Ok(begun.elapsed())
}

/// As when control starts again: nothing that is told changes, and so nothing is made anew.
#[test]
fn what_is_said_again_costs_next_to_nothing() -> Result<()> {
    let mut objects = cluster()?;
    let mut index = Index::of_conditions();
    reset(&mut index, &objects);
    let view = index.view();
    let before = Arc::clone(&view.borrow());
    let stream = Arc::default();
    let again = (2..5).map(|generation| reports(&mut index, &stream, generation));
    let again = again.collect::<Result<Vec<_>>>()?;
    let again = *again.iter().min().context("none")?;
    ensure!(Arc::ptr_eq(&before, &view.borrow()), "nothing is told");
    ensure!(index.unwritten().borrow().pods.is_empty());
    let one = changes(&mut index, &mut objects, |nth| pod(nth, "", false))?;
    println!("{PODS} reports of what is known: {again:?}, a change of a pod {one:?}");
    ensure!(again < one * MOST_CHANGES, "{again:?} against {one:?}");
    Ok(())
}

#[test]
fn a_change_costs_less_than_all() -> Result<()> {
    let mut objects = cluster()?;
    let mut index = Index::of_conditions();
    let first = reset(&mut index, &objects);
    let view = index.view();
    let before = Arc::clone(&view.borrow());
    let destination = before.resolve("10.96.0.1:80".parse()?);
    let Destination::Service(service) = destination else {
        anyhow::bail!("{destination:?}");
    };
    ensure!(service.endpoints.len() == PODS / SERVICES, "{service:?}");

    let unread = changes(&mut index, &mut objects, |nth| pod(nth, "other", true))?;
    ensure!(Arc::ptr_eq(&before, &view.borrow()), "no label is read");
    let read = changes(&mut index, &mut objects, |nth| {
        let mut pod = pod(nth, "other", true);
        pod["spec"]["serviceAccountName"] = json!("else");
        pod
    })?;
    println!(
        "{PODS} pods and {SERVICES} services: {first:?}; then a change of a pod {read:?}, one that \
         nobody reads {unread:?}"
    );
    let after = Arc::clone(&view.borrow());
    let of = |nth: usize| {
        let uid = PodUid(format!("uid-{nth}"));
        let pods = (before.pod(&uid).cloned(), after.pod(&uid).cloned());
        pods.0.zip(pods.1).context("no pod")
    };
    let (same, changed) = (of(PODS - 1)?, of(0)?);
    ensure!(Arc::ptr_eq(&same.0, &same.1), "it is shared");
    ensure!(changed.1.peer.workload.service_account == "else");
    ensure!(read * 4 < first * 3, "{read:?} against {first:?}");
    Ok(())
}

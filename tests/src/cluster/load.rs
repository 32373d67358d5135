// SPDX-License-Identifier: Apache-2.0
//! Load that runs in a pod and goes on whatever becomes of the API server, the kubelet and the runtime: it is read from the pod's log.

use std::{
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Cluster, pods::Pod};
use crate::{
    app::{requests::Requested, stream::Streamed},
    runtime::image::{APP, TESTAPP},
    wait::wait_for,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Two pods: one sends requests, some each second over new connections; one holds connections that carry bytes.
#[derive(Debug)]
pub struct Load<'a> {
    cluster: &'a Cluster,
    requests: Pod,
    streams: Pod,
}

/// A pod of a load.
fn pod(namespace: &str, node: &str, name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": APP, "imagePullPolicy": "Never", "command": ["sh", "-c", script]}],
        },
    })
}

// === impl Load ===

impl<'a> Load<'a> {
    /// Begins on a node: `http` and `echo` are what it talks to, `HOST:PORT`.
    pub fn start(
        cluster: &'a Cluster,
        namespace: &str,
        node: &str,
        http: &str,
        echo: &str,
    ) -> anyhow::Result<Self> {
        // Pods take seconds to go: nobody waits for that, but no two have the same name.
        static NTH: AtomicU32 = AtomicU32::new(0);
        let nth = NTH.fetch_add(1, Ordering::Relaxed);
        let pid = process::id();
        let [requesting, streaming] =
            ["requests", "streams"].map(|what| format!("load-{what}-{pid}-{nth}"));
        let requests = format!(
            "while {TESTAPP} requests {http} --count 40 --rate 40 --patience 60; do :; done"
        );
        let streams =
            format!("while sleep 1; do echo; done | {TESTAPP} stream {echo} --connections 3");
        for (name, script) in [(&requesting, requests), (&streaming, streams)] {
            cluster.apply(&pod(namespace, node, name, &script).to_string())?;
        }
        let load = Self {
            cluster,
            requests: cluster.ready(namespace, &format!("app={requesting}"))?,
            streams: cluster.ready(namespace, &format!("app={streaming}"))?,
        };
        load.runs()?;
        Ok(load)
    }

    /// Ends it.
    pub fn end(self) -> anyhow::Result<()> {
        let [one, other] = [&*self.requests.name, &self.streams.name];
        let namespace = &*self.requests.namespace;
        let delete = ["-n", namespace, "delete", "pod", one, other, "--wait=false"];
        self.cluster.kubectl(&delete)?;
        Ok(())
    }

    /// Waits until more was sent and came back, so that what was done was done under load.
    pub fn runs(&self) -> anyhow::Result<()> {
        let [requests, streams] = [self.requested()?.len(), self.streamed()?.len()];
        wait_for("the load to go on", PATIENCE, || {
            let [now, then] = [self.requested()?.len(), self.streamed()?.len()];
            ensure!(
                now > requests + 1 && then > streams + 1,
                "{now} and {then} lines"
            );
            Ok(())
        })
    }

    /// Fails if a request since the beginning did. How many there were.
    pub fn no_request_failed(&self) -> anyhow::Result<u64> {
        let all = self.requested()?;
        for (nth, one) in all.iter().enumerate() {
            ensure!(
                one.failures.is_empty(),
                "{nth}: {one:?}, of {} lines",
                all.len()
            );
        }
        Ok(all.iter().map(|one| one.sent).sum())
    }

    /// Fails if a connection broke since it was opened, or stands still.
    pub fn no_stream_broke(&self) -> anyhow::Result<()> {
        let all = self.streamed()?;
        let [.., before, last] = &all[..] else {
            anyhow::bail!("the streams say nothing");
        };
        ensure!(last.broken.is_empty(), "{last:?}");
        ensure!(last.least > before.least, "{last:?} is where it was");
        Ok(())
    }

    /// Both.
    pub fn nothing_failed(&self) -> anyhow::Result<u64> {
        self.no_stream_broke()?;
        self.no_request_failed()
    }

    fn requested(&self) -> anyhow::Result<Vec<Requested>> {
        self.lines(&self.requests)
    }

    fn streamed(&self) -> anyhow::Result<Vec<Streamed>> {
        self.lines(&self.streams)
    }

    fn lines<T: DeserializeOwned>(&self, pod: &Pod) -> anyhow::Result<Vec<T>> {
        let log = self
            .cluster
            .kubectl(&["-n", &pod.namespace, "logs", &pod.name])?;
        let parse =
            |line| serde_json::from_str(line).with_context(|| format!("{}: {line}", pod.name));
        log.stdout.lines().map(parse).collect()
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Whether the agent ends because Culvert is taken from the cluster or from its node: its own DaemonSet is deleted, or selects
//! the node no more.

use std::{fmt, pin::pin, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Namespace, Node},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{WatchEvent, WatchParams},
    core::PartialObjectMeta,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between two watches: the API server ends one every few minutes.
const PAUSE: Duration = Duration::from_secs(10);

/// What the API server sends the metadata of only.
type Metadata<K> = Api<PartialObjectMeta<K>>;

/// The agent's own DaemonSet.
#[derive(Debug)]
pub struct Own {
    daemonsets: Api<DaemonSet>,
    namespaces: Metadata<Namespace>,
    nodes: Metadata<Node>,
    name: String,
    namespace: String,
    node: String,
    seen: watch::Receiver<Seen>,
    watching: JoinHandle<()>,
}

/// Why Culvert is to go from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It goes from the cluster.
    Deleted,
    /// It stays on other nodes.
    NotSelected,
}

/// What the API server says; none where it does not answer, none within where nothing is.
struct Now {
    daemonset: Option<Option<DaemonSet>>,
    namespace: Option<Option<ObjectMeta>>,
    node: Option<Option<ObjectMeta>>,
}

/// What was seen of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    /// Never: it may have another name, or the API server is away since the start.
    #[default]
    Nothing,
    /// It is there.
    There,
    /// It was there, and is deleted or about to be.
    Going,
}

// === impl Own ===

impl Own {
    /// Watches it until dropped.
    pub fn watch(client: &Client, (namespace, name): (&str, &str), node: &str) -> Self {
        let (sender, seen) = watch::channel(Seen::Nothing);
        let watched = Api::namespaced(client.clone(), namespace);
        Self {
            watching: tokio::spawn(follow(watched, name.to_owned(), sender)),
            daemonsets: Api::namespaced(client.clone(), namespace),
            namespaces: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            node: node.to_owned(),
            seen,
        }
    }

    /// Asked when the agent is told to end; none when it is to leave all as it is. Who can't be asked has not deleted anything.
    pub async fn going(&self) -> Option<Why> {
        let (daemonset, namespace, node) = tokio::join!(
            answered("DaemonSet", self.daemonsets.get_opt(&self.name)),
            answered("namespace", self.namespaces.get_opt(&self.namespace)),
            answered("node", self.nodes.get_opt(&self.node)),
        );
        let now = Now {
            daemonset,
            namespace: namespace.map(|found| found.map(|found| found.metadata)),
            node: node.map(|found| found.map(|found| found.metadata)),
        };
        judge(*self.seen.borrow(), &now)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

// === impl Why ===

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deleted => "its DaemonSet or namespace is deleted",
            Self::NotSelected => "the DaemonSet's node selector has not this node",
        })
    }
}

fn judge(seen: Seen, now: &Now) -> Option<Why> {
    let namespace = now.namespace.as_ref().and_then(Option::as_ref);
    if is_going(seen, now.daemonset.as_ref()) || namespace.is_some_and(is_deleted) {
        return Some(Why::Deleted);
    }
    // A node that is gone has no labels, and nobody wants anything of it.
    let (daemonset, node) = (
        now.daemonset.as_ref()?.as_ref()?,
        now.node.as_ref()?.as_ref()?,
    );
    (!selects(daemonset, node)).then_some(Why::NotSelected)
}

fn is_going(seen: Seen, now: Option<&Option<DaemonSet>>) -> bool {
    match now {
        Some(Some(found)) => is_deleted(&found.metadata),
        // One that was never there may have another name.
        Some(None) => seen != Seen::Nothing,
        None => seen == Seen::Going,
    }
}

fn is_deleted(metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_some()
}

/// By its labels, as the controller of DaemonSets does. The chart has no node affinity.
fn selects(daemonset: &DaemonSet, node: &ObjectMeta) -> bool {
    let pod = daemonset.spec.template.spec.as_ref();
    let selector = pod.and_then(|pod| pod.node_selector.as_ref());
    let label = |name| node.labels.as_ref().and_then(|labels| labels.get(name));
    selector
        .into_iter()
        .flatten()
        .all(|(name, value)| label(name) == Some(value))
}

/// None: no answer.
async fn answered<T>(what: &str, asked: impl Future<Output = kube::Result<T>>) -> Option<T> {
    let error = match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} seconds", PATIENCE.as_secs()),
    };
    tracing::warn!(
        what,
        error,
        "Could not ask whether Culvert is being uninstalled"
    );
    None
}

/// What is missed between two watches is found by asking.
async fn follow(daemonsets: Metadata<DaemonSet>, name: String, seen: watch::Sender<Seen>) {
    loop {
        if let Err(error) = follow_once(&daemonsets, &name, &seen).await {
            tracing::debug!(%error, name, "A watch of the agent's DaemonSet ended");
        }
        sleep(PAUSE).await;
    }
}

async fn follow_once(
    daemonsets: &Metadata<DaemonSet>,
    name: &str,
    seen: &watch::Sender<Seen>,
) -> kube::Result<()> {
    let one = WatchParams::default().fields(&format!("metadata.name={name}"));
    // From "0" the server begins with what there is.
    let mut events = pin!(daemonsets.watch(&one, "0").await?);
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Added(found) | WatchEvent::Modified(found) => {
                see(seen, Some(&found.metadata));
            }
            WatchEvent::Deleted(_) => see(seen, None),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => return Err(kube::Error::Api(status)),
        }
    }
    Ok(())
}

fn see(seen: &watch::Sender<Seen>, found: Option<&ObjectMeta>) {
    seen.send_if_modified(|seen| {
        let now = match (found, *seen) {
            (Some(metadata), _) if is_deleted(metadata) => Seen::Going,
            (Some(_), _) => Seen::There,
            (None, Seen::Nothing) => Seen::Nothing,
            (None, Seen::There | Seen::Going) => Seen::Going,
        };
        std::mem::replace(seen, now) != now
    });
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use serde_json::{Value, json};

    use super::*;

    fn there() -> ObjectMeta {
        ObjectMeta::default()
    }

    fn going() -> ObjectMeta {
        ObjectMeta {
            deletion_timestamp: Some(Time(Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        }
    }

    fn daemonset(metadata: ObjectMeta, selector: Value) -> DaemonSet {
        let pod = json!({"nodeSelector": selector, "containers": []});
        let spec = json!({"selector": {}, "template": {"spec": pod}});
        let mut daemonset: DaemonSet =
            serde_json::from_value(json!({"spec": spec})).unwrap_or_else(|e| panic!("{e}"));
        daemonset.metadata = metadata;
        daemonset
    }

    fn labelled(labels: Value) -> ObjectMeta {
        serde_json::from_value(json!({ "labels": labels })).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn only_what_is_deleted_is_going() {
        use Seen::{Going, Nothing, There};
        let present = Some(daemonset(there(), json!({})));
        let (deleted, absent) = (Some(daemonset(going(), json!({}))), None);
        for (seen, now, expected) in [
            // The API server knows best: also of one that was made again.
            (There, Some(&present), false),
            (Going, Some(&present), false),
            (Nothing, Some(&deleted), true),
            (There, Some(&deleted), true),
            (There, Some(&absent), true),
            // Another name.
            (Nothing, Some(&absent), false),
            // The API server is away.
            (Nothing, None, false),
            (There, None, false),
            (Going, None, true),
        ] {
            let now = Now {
                daemonset: now.cloned(),
                namespace: None,
                node: None,
            };
            let expected = expected.then_some(Why::Deleted);
            assert_eq!(judge(seen, &now), expected, "{seen:?} {:?}", now.daemonset);
        }
    }

    #[test]
    fn a_namespace_takes_its_daemonset_with_it() {
        for (namespace, expected) in [
            (Some(Some(going())), Some(Why::Deleted)),
            (Some(Some(there())), None),
            (Some(None), None),
            (None, None),
        ] {
            let now = Now {
                daemonset: Some(Some(daemonset(there(), json!({})))),
                namespace,
                node: None,
            };
            assert_eq!(judge(Seen::There, &now), expected, "{:?}", now.namespace);
        }
    }

    #[test]
    fn a_node_is_left_when_the_selector_has_it_no_more() {
        let linux = json!({"kubernetes.io/os": "linux"});
        let pool = json!({"kubernetes.io/os": "linux", "pool": "a"});
        for (selector, node, expected) in [
            (json!({}), Some(Some(labelled(json!({})))), None),
            (linux, Some(Some(labelled(pool.clone()))), None),
            (pool.clone(), Some(Some(labelled(pool.clone()))), None),
            (
                pool.clone(),
                Some(Some(labelled(json!({"kubernetes.io/os": "linux"})))),
                Some(Why::NotSelected),
            ),
            (
                pool.clone(),
                Some(Some(labelled(
                    json!({"kubernetes.io/os": "linux", "pool": "b"}),
                ))),
                Some(Why::NotSelected),
            ),
            // The node is gone, or can't be asked for.
            (pool.clone(), Some(None), None),
            (pool, None, None),
        ] {
            let now = Now {
                daemonset: Some(Some(daemonset(there(), selector))),
                namespace: Some(Some(there())),
                node,
            };
            assert_eq!(judge(Seen::There, &now), expected, "{:?}", now.node);
        }
    }

    #[test]
    fn what_was_there_and_is_not_is_going() {
        let (seen, _receiver) = watch::channel(Seen::Nothing);
        let (there, going) = (there(), going());
        for (found, expected) in [
            (None, Seen::Nothing),
            (Some(&there), Seen::There),
            (Some(&going), Seen::Going),
            (Some(&there), Seen::There),
            (None, Seen::Going),
        ] {
            see(&seen, found);
            assert_eq!(*seen.borrow(), expected);
        }
    }
}

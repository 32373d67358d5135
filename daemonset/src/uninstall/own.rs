// SPDX-License-Identifier: Apache-2.0
//! Whether the agent ends because Culvert is taken from the cluster: its own DaemonSet is deleted.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::{
    api::{apps::v1::DaemonSet, core::v1::Namespace},
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
    daemonsets: Metadata<DaemonSet>,
    namespaces: Metadata<Namespace>,
    namespace: String,
    name: String,
    seen: watch::Receiver<Seen>,
    watching: JoinHandle<()>,
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
    pub fn watch(client: &Client, namespace: &str, name: &str) -> Self {
        let daemonsets: Metadata<DaemonSet> = Api::namespaced(client.clone(), namespace);
        let (sender, seen) = watch::channel(Seen::Nothing);
        Self {
            watching: tokio::spawn(follow(daemonsets.clone(), name.to_owned(), sender)),
            daemonsets,
            namespaces: Api::all(client.clone()),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            seen,
        }
    }

    /// Asked when the agent is told to end. Who can't be asked has not deleted anything.
    pub async fn is_going(&self) -> bool {
        let daemonset = self.daemonsets.get_opt(&self.name);
        let daemonset = answered("DaemonSet", daemonset).await;
        let daemonset = daemonset.map(|found| found.map(|found| found.metadata));
        if judge(*self.seen.borrow(), daemonset.as_ref()) {
            return true;
        }
        let namespace = self.namespaces.get_opt(&self.namespace);
        let namespace = answered("namespace", namespace).await.flatten();
        namespace.is_some_and(|found| is_deleted(&found.metadata))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// `now` is what the API server says of it; none when it says nothing.
fn judge(seen: Seen, now: Option<&Option<ObjectMeta>>) -> bool {
    match now {
        Some(Some(metadata)) => is_deleted(metadata),
        // One that was never there may have another name.
        Some(None) => seen != Seen::Nothing,
        None => seen == Seen::Going,
    }
}

fn is_deleted(metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_some()
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

    #[test]
    fn only_what_is_deleted_is_going() {
        use Seen::{Going, Nothing, There};
        let (present, deleted, absent) = (Some(there()), Some(going()), None);
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
            assert_eq!(judge(seen, now), expected, "{seen:?} {now:?}");
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

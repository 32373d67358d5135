// SPDX-License-Identifier: Apache-2.0
//! The sandboxes of this node, each with a task of its own that does one thing at a time.

mod actor;
mod enrol;
mod fault;
mod follow;
mod leave;
mod state;
mod withdraw;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use culvert_api::{
    cni::{Attachment, Response},
    workload::NetnsCookie,
};
use culvert_ebpf_loader::{self as loader, Node};
use tokio::sync::{mpsc, oneshot, watch};

use self::actor::Actor;
pub use self::{fault::Fault, state::Pace};
use crate::{
    desired::Desired,
    ebpf::{self, Ebpf},
    metrics::Metrics,
    proxy_link::hub::Hub,
    reports::Reports,
    store::{Interface, Record, Store},
};

/// How long a pod that could not be adopted waits.
const ADOPT_AGAIN: Duration = Duration::from_secs(5);

/// How often is looked whether a pod without a record is dead.
const BURY_AGAIN: Duration = Duration::from_secs(5);

/// The sandboxes of this node. Clones share them.
#[derive(Clone, Debug)]
pub struct Pods {
    shared: Arc<Shared>,
}

/// What every sandbox's task needs.
#[derive(Debug)]
pub struct Shared {
    /// The programs.
    pub ebpf: Ebpf,
    /// What proxies know.
    pub hub: Hub,
    /// What is on disk.
    pub store: Store,
    /// What the pods should be.
    pub desired: watch::Receiver<Arc<Desired>>,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is told of a pod's trouble.
    pub reports: Reports,
    /// Whether all pods are to leave the mesh, whatever anybody wants.
    leaving: AtomicBool,
    actors: Mutex<BTreeMap<String, mpsc::UnboundedSender<Command>>>,
}

/// What a sandbox's task is asked to do.
#[derive(Debug)]
enum Command {
    Add(Attachment, oneshot::Sender<Response>),
    /// It runs already: the CNI plugin let it pass while no agent was there.
    Adopt(Attachment, oneshot::Sender<Response>),
    /// Of one interface.
    Del(Interface, oneshot::Sender<Response>),
    Check(oneshot::Sender<Response>),
    /// Of all interfaces of a network but these.
    Keep(String, BTreeSet<String>, oneshot::Sender<Response>),
    Restore(Box<Record>, oneshot::Sender<Response>),
    /// Do what is wanted now, and say whether anything steers it or its connections still.
    Follow(oneshot::Sender<Response>),
    /// Let go of it, whatever becomes of its connections.
    Release(oneshot::Sender<Response>),
}

// === impl Pods ===

impl Pods {
    /// No sandboxes yet.
    pub fn new(
        ebpf: Ebpf,
        hub: Hub,
        store: Store,
        desired: watch::Receiver<Arc<Desired>>,
        metrics: Metrics,
        reports: Reports,
    ) -> Self {
        let shared = Shared {
            ebpf,
            hub,
            store,
            desired,
            metrics,
            reports,
            leaving: AtomicBool::new(false),
            actors: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// What every sandbox's task needs.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Steers a pod if it is opted in.
    pub async fn add(&self, attachment: Attachment) -> Response {
        let id = attachment.container_id.clone();
        self.ask(&id, |reply| Command::Add(attachment, reply)).await
    }

    /// Takes in a pod that runs already.
    pub async fn take_in(&self, attachment: Attachment) -> Response {
        let id = attachment.container_id.clone();
        self.ask(&id, |reply| Command::Adopt(attachment, reply))
            .await
    }

    /// Whether a sandbox was added or taken in.
    pub fn knows(&self, container_id: &str) -> bool {
        self.shared.lock().contains_key(container_id)
    }

    /// Lets go of a pod. One that is not known is gone.
    pub async fn del(&self, attachment: Attachment) -> Response {
        let interface = interface(&attachment);
        let id = &attachment.container_id;
        let asked = self.ask_known(id, |reply| Command::Del(interface, reply));
        asked.await.unwrap_or(Response::Done { steered: false })
    }

    /// Is the pod as it was added?
    pub async fn check(&self, attachment: Attachment) -> Response {
        let asked = self.ask_known(&attachment.container_id, Command::Check);
        let unknown = || Fault::Unknown {
            container_id: attachment.container_id.clone(),
        };
        asked.await.unwrap_or_else(|| unknown().into())
    }

    /// Lets go of all of a network that is not listed.
    pub async fn gc(&self, network: String, valid: Vec<(String, String)>) -> Response {
        let mut listed = BTreeMap::<_, BTreeSet<_>>::new();
        for (container_id, ifname) in valid {
            listed.entry(container_id).or_default().insert(ifname);
        }
        let known: Vec<_> = self.shared.lock().keys().cloned().collect();
        let mut worst = Response::Done { steered: false };
        for id in known {
            let keep = listed.remove(&id).unwrap_or_default();
            let network = network.clone();
            let asked = self.ask_known(&id, |reply| Command::Keep(network, keep, reply));
            if let Some(failed @ Response::Failed { .. }) = asked.await {
                worst = failed;
            }
        }
        worst
    }

    /// Takes over the sandboxes that an earlier agent left, and collects what is nobody's.
    pub async fn restore(&self) -> anyhow::Result<()> {
        let records = self.shared.store.records()?;
        let restored = records.into_iter().map(|record| async move {
            let id = record.container_id.clone();
            let record = Box::new(record);
            self.ask(&id, |reply| Command::Restore(record, reply)).await
        });
        let restored = futures_util::future::join_all(restored).await;
        let steered = |response: &Response| matches!(response, Response::Done { .. });
        let (orphans, left) = self.collect(restored.iter().all(steered)).await?;
        if !orphans.is_empty() {
            tokio::spawn(self.clone().bury(orphans));
        }
        if left {
            tokio::spawn(self.clone().bury_versions());
        }
        Ok(())
    }

    /// Takes in the pods that the CNI plugin let pass while no agent was there, until none is left.
    pub async fn adopt_passed(self) {
        loop {
            let passed = self.shared.store.passed();
            if passed.is_empty() {
                return;
            }
            let adopted = passed.into_iter().map(|(note, pod)| self.adopt(note, pod));
            futures_util::future::join_all(adopted).await;
            tokio::time::sleep(ADOPT_AGAIN).await;
        }
    }

    async fn adopt(&self, note: PathBuf, attachment: Attachment) {
        let id = attachment.container_id.clone();
        let gone = attachment
            .netns
            .as_ref()
            .is_none_or(|netns| !netns.exists());
        if !gone {
            let adopted = self.take_in(attachment).await;
            if matches!(adopted, Response::Failed { .. }) {
                return;
            }
            let adopted = &self.shared.metrics.adopted;
            adopted.with_label_values(&["plugin"]).inc();
        }
        tracing::info!(
            container.id = id,
            gone,
            "A pod that passed without the agent is known now"
        );
        if let Err(error) = std::fs::remove_file(&note) {
            tracing::warn!(path = %note.display(), %error, "Could not remove a note of the CNI plugin");
        }
    }

    /// Unpins what belongs to no record and no live namespace, and returns what belongs to a live
    /// one. What other versions pinned goes once nothing needs it; whether something does.
    async fn collect(&self, all_restored: bool) -> anyhow::Result<(BTreeSet<NetnsCookie>, bool)> {
        let records = self.shared.store.records()?;
        let kept: BTreeSet<_> = records.iter().map(|record| record.cookie).collect();
        let pinned = self.shared.ebpf.run(|node| node.pinned_pods()).await?;
        let pinned = pinned.into_iter().map(NetnsCookie);
        let nobodys = pinned.filter(|cookie| !kept.contains(cookie)).collect();
        let orphans = self.bury_dead(nobodys).await?;
        let cut = orphans.clone();
        let collect = move |node: &mut Node| {
            // Their sk_lookup programs stay.
            cut.iter().try_for_each(|cookie| cut_off(node, *cookie))?;
            let left = node.left_to_other_versions()?;
            match all_restored && left.is_empty() {
                true => Ok((node.collect_other_versions()?, left, false)),
                false => Ok((0, left, true)),
            }
        };
        let (versions, left, needed) = self.shared.ebpf.run(collect).await?;
        note_versions(versions);
        orphans.iter().for_each(note_orphan);
        left.into_iter().for_each(note_left);
        Ok((orphans, needed))
    }

    /// Collects what other versions pinned when the last pod that only they steer is dead, or is
    /// steered by this one.
    async fn bury_versions(self) {
        let collect = |node: &mut Node| match node.left_to_other_versions()?.is_empty() {
            true => node.collect_other_versions().map(Some),
            false => Ok(None),
        };
        loop {
            tokio::time::sleep(BURY_AGAIN).await;
            match self.shared.ebpf.run(collect).await {
                Ok(Some(versions)) => return note_versions(versions),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "Could not collect other versions' pins"),
            }
        }
    }

    /// Collects orphans when they are dead.
    async fn bury(self, mut orphans: BTreeSet<NetnsCookie>) {
        while !orphans.is_empty() {
            tokio::time::sleep(BURY_AGAIN).await;
            match self.bury_dead(orphans.clone()).await {
                Ok(alive) => orphans = alive,
                Err(error) => tracing::warn!(%error, "Could not collect the pins of dead pods"),
            }
        }
    }

    /// Unpins what steered dead pods, and returns who is alive.
    async fn bury_dead(
        &self,
        cookies: BTreeSet<NetnsCookie>,
    ) -> Result<BTreeSet<NetnsCookie>, ebpf::Error> {
        let bury = move |node: &mut Node| {
            let (mut alive, mut dead) = (BTreeSet::new(), Vec::new());
            for cookie in cookies {
                match bury_one(node, cookie) {
                    Ok(true) => dead.push(cookie),
                    Ok(false) => drop(alive.insert(cookie)),
                    // One that can't be collected holds up nobody else, and is tried again.
                    Err(error) => {
                        tracing::warn!(
                            netns.cookie = %cookie, %error,
                            "Could not collect the pins of a pod"
                        );
                        alive.insert(cookie);
                    }
                }
            }
            Ok((alive, dead))
        };
        let (alive, dead) = self.shared.ebpf.run(bury).await?;
        for cookie in dead {
            if let Err(error) = self.shared.store.remove_unreadable(cookie) {
                tracing::warn!(%error, "Could not remove the record of a dead pod");
            }
        }
        Ok(alive)
    }

    /// Asks the task of a sandbox, which is started when there is none.
    async fn ask(
        &self,
        container_id: &str,
        command: impl FnOnce(oneshot::Sender<Response>) -> Command,
    ) -> Response {
        let (reply, answer) = oneshot::channel();
        {
            let mut actors = self.shared.lock();
            actors.retain(is_alive);
            let start = || Actor::start(Arc::clone(&self.shared), container_id.to_owned());
            let actor = actors.entry(container_id.to_owned()).or_insert_with(start);
            // A task takes itself out under the same lock before it ends.
            drop(actor.send(command(reply)));
        }
        answer.await.unwrap_or_else(|_| Fault::Panicked.into())
    }

    /// None: there is no task.
    async fn ask_known(
        &self,
        container_id: &str,
        command: impl FnOnce(oneshot::Sender<Response>) -> Command,
    ) -> Option<Response> {
        let (reply, answer) = oneshot::channel();
        {
            let mut actors = self.shared.lock();
            actors.retain(is_alive);
            drop(actors.get(container_id)?.send(command(reply)));
        }
        Some(answer.await.unwrap_or_else(|_| Fault::Panicked.into()))
    }
}

fn note_orphan(cookie: &NetnsCookie) {
    tracing::error!(
        netns.cookie = %cookie,
        "A steered pod runs whose record in --state-dir is lost or broken: it is cut off until it \
         is deleted, or the later release that wrote its record is back; delete the pod, and its \
         successor is steered again"
    );
}

fn note_left(cookie: u64) {
    tracing::error!(
        netns.cookie = cookie,
        "A pod could not be taken over from the programs of another version, which keep steering \
         it: when this agent does not steer it soon, delete the pod"
    );
}

fn note_versions(versions: usize) {
    if versions > 0 {
        tracing::info!(versions, "Collected the pins of other versions");
    }
}

/// Whether it is dead, and then unpinned.
fn bury_one(node: &mut Node, cookie: NetnsCookie) -> Result<bool, loader::Error> {
    if node.is_live(cookie.0)? {
        return Ok(false);
    }
    tracing::info!(netns.cookie = %cookie, "Collecting the pins of a dead pod");
    node.withdraw(cookie.0)?;
    node.detach_pod(cookie.0)?;
    Ok(true)
}

/// One that is attached only makes no marks anyway.
fn cut_off(node: &mut Node, cookie: NetnsCookie) -> Result<(), loader::Error> {
    match node.set_up(cookie.0, false) {
        Err(loader::Error::NotEnrolled { .. }) => Ok(()),
        other => other,
    }
}

fn interface(attachment: &Attachment) -> Interface {
    Interface {
        network: attachment.network.clone(),
        ifname: attachment.ifname.clone(),
    }
}

/// A task that panicked did not take itself out.
fn is_alive(_: &String, actor: &mut mpsc::UnboundedSender<Command>) -> bool {
    !actor.is_closed()
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, mpsc::UnboundedSender<Command>>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The task of one sandbox: what it hears, one thing at a time.

use std::{path::Path, sync::Arc, time::Duration};

use culvert_api::{
    cni::{Attachment, Response},
    workload::PodUid,
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, sleep_until, timeout},
};

use super::{
    Command, Fault, Shared, interface,
    state::{Attached, State},
};
use crate::{
    desired::{Desired, PodRef, Wanted},
    enrolment::Enrolment,
    netns::{self, Netns},
    store::{self, Interfaces, Record},
};

/// How long ADD waits for a pod that the agent has not heard of yet.
const POD_WAIT: Duration = Duration::from_secs(2);

/// How often is tried to look at what an earlier agent left.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// One sandbox.
pub struct Actor {
    pub(super) shared: Arc<Shared>,
    pub(super) container_id: String,
    pub(super) attached: Option<Attached>,
    /// What an earlier agent left and could not be looked at yet.
    pub(super) unseen: Option<Record>,
    commands: mpsc::UnboundedReceiver<Command>,
    desired: watch::Receiver<Arc<Desired>>,
}

enum Event {
    Command(Option<Command>),
    Desired,
    Addresses(Option<()>),
    Withdrawn,
    Wake,
    Unseen,
}

// === impl Actor ===

impl Actor {
    /// Starts the task of a sandbox.
    pub fn start(shared: Arc<Shared>, container_id: String) -> mpsc::UnboundedSender<Command> {
        let (sender, commands) = mpsc::unbounded_channel();
        let mut desired = shared.desired.clone();
        desired.mark_changed();
        let actor = Self {
            shared,
            container_id,
            attached: None,
            unseen: None,
            commands,
            desired,
        };
        tokio::spawn(actor.run());
        sender
    }

    async fn run(mut self) {
        while !self.is_over() {
            let event = self.next().await;
            self.handle(event).await;
        }
    }

    /// Takes the task out of the registry once nothing is attached and nobody waits. Who asks
    /// sends under the same lock.
    fn is_over(&mut self) -> bool {
        if self.attached.is_some() || self.unseen.is_some() {
            return false;
        }
        let mut actors = self.shared.lock();
        if !self.commands.is_empty() {
            return false;
        }
        actors.remove(&self.container_id);
        true
    }

    async fn next(&mut self) -> Event {
        let Some(attached) = &mut self.attached else {
            let unseen = self.unseen.is_some();
            return tokio::select! {
                command = self.commands.recv() => Event::Command(command),
                () = sleep(LOOK_AGAIN), if unseen => Event::Unseen,
            };
        };
        let wake = attached.wake;
        let key = attached.record.key();
        let withdrawing = matches!(attached.state, State::Withdrawing(_));
        let enrolment = attached.enrolment_mut();
        let hub = &self.shared.hub;
        tokio::select! {
            command = self.commands.recv() => Event::Command(command),
            Ok(()) = self.desired.changed() => Event::Desired,
            changed = addresses(enrolment) => Event::Addresses(changed),
            () = hub.withdrawn(&key), if withdrawing => Event::Withdrawn,
            () = sleep_until(wake) => Event::Wake,
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Command(Some(command)) => self.command(command).await,
            // The registry is gone: the process ends.
            Event::Command(None) => {}
            Event::Desired => self.follow().await,
            Event::Addresses(Some(())) => self.look().await,
            Event::Addresses(None) => self.reconnect().await,
            Event::Withdrawn => self.withdrawn().await,
            Event::Wake => self.wake().await,
            Event::Unseen => self.look_again().await,
        }
    }

    /// A caller that went away does not want the answer.
    async fn command(&mut self, command: Command) {
        match command {
            Command::Add(attachment, reply) => {
                let added = self.try_add(attachment).await;
                drop(reply.send(self.answer(added)));
            }
            Command::Adopt(attachment, reply) => {
                let adopted = self.try_adopt(attachment).await;
                drop(reply.send(self.answer(adopted)));
            }
            Command::Del(interface, reply) => {
                let left = self.leave(|interfaces| interfaces.delete(&interface)).await;
                drop(reply.send(left));
            }
            Command::Keep(network, valid, reply) => {
                let collect = |interfaces: &mut Interfaces| interfaces.collect(&network, &valid);
                drop(reply.send(self.leave(collect).await));
            }
            Command::Check(reply) => drop(reply.send(self.check().await)),
            Command::Follow(reply) => drop(reply.send(self.follow_now().await)),
            Command::Release(reply) => drop(reply.send(self.release_now().await)),
            Command::Restore(record, reply) => {
                drop(reply.send(self.restore(*record).await));
            }
        }
    }

    fn answer(&self, added: Result<(), Fault>) -> Response {
        match added {
            Ok(()) => self.done(),
            Err(fault) => {
                tracing::warn!(
                    container.id = self.container_id, error = %fault,
                    "Could not add a pod"
                );
                fault.into()
            }
        }
    }

    async fn try_add(&mut self, attachment: Attachment) -> Result<(), Fault> {
        let wanted = self.try_attach(attachment).await?;
        if wanted.mesh.is_some() && !self.is_steered() {
            let enrolled = self.enrol(&wanted, false).await;
            if enrolled.is_err() {
                self.release().await;
            }
            return enrolled;
        }
        // The new interface may have brought addresses.
        self.try_refresh().await
    }

    /// A pod that runs already: what it should be it becomes live.
    async fn try_adopt(&mut self, attachment: Attachment) -> Result<(), Fault> {
        self.try_attach(attachment).await?;
        self.try_refresh().await?;
        self.follow().await;
        Ok(())
    }

    async fn try_attach(&mut self, attachment: Attachment) -> Result<Wanted, Fault> {
        self.look_again().await;
        let pod = pod_ref(&attachment)?;
        let path = attachment.netns.clone().ok_or(Fault::NoNetns)?;
        let wanted = self.wait_for(&pod).await?;
        let netns = open(&path).await?;
        let uid = &wanted.workload.uid;
        let same = |attached: &Attached| {
            attached.netns.cookie() == netns.cookie() && attached.record.workload.uid == *uid
        };
        if !self.attached.as_ref().is_some_and(same) {
            self.release().await;
            self.attach(&attachment, path, &wanted, netns).await?;
        }
        self.add_interface(interface(&attachment))?;
        Ok(wanted)
    }

    async fn wait_for(&self, pod: &PodRef) -> Result<Wanted, Fault> {
        let mut desired = self.shared.desired.clone();
        let known = desired.wait_for(|desired| desired.find(pod).is_some());
        let known = timeout(POD_WAIT, known).await;
        let wanted = known.ok().and_then(Result::ok);
        let wanted = wanted.and_then(|desired| desired.find(pod));
        let wanted = wanted.ok_or_else(|| Fault::UnknownPod {
            pod: pod.to_string(),
        })?;
        Ok(self.unless_leaving(wanted))
    }

    fn unless_leaving(&self, wanted: Wanted) -> Wanted {
        let mesh = wanted.mesh.filter(|_| !self.shared.is_leaving());
        Wanted { mesh, ..wanted }
    }

    pub(super) fn done(&self) -> Response {
        Response::Done {
            steered: self.is_steered(),
        }
    }

    /// What the pod should be; none when the agent has not heard of it.
    pub(super) fn wanted(&mut self) -> Option<Wanted> {
        let workload = &self.attached.as_ref()?.record.workload;
        let wanted = self.desired.borrow_and_update().pod(&workload.uid).cloned();
        let anybody = || Wanted {
            workload: workload.clone(),
            mesh: None,
            finished: false,
        };
        let leaving = self.shared.is_leaving();
        let wanted = wanted.or_else(|| leaving.then(anybody))?;
        Some(self.unless_leaving(wanted))
    }
}

/// Pends for a pod that has no address to follow.
async fn addresses(attached: Option<&mut Enrolment>) -> Option<()> {
    match attached {
        Some(enrolment) => enrolment.changed().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn open(path: &Path) -> Result<Netns, Fault> {
    let netns = Netns::open(path).await?;
    match netns.cookie() == netns::current_cookie()? {
        true => Err(Fault::HostNetns),
        false => Ok(netns),
    }
}

fn pod_ref(attachment: &Attachment) -> Result<PodRef, Fault> {
    let arg = |name: &'static str| {
        let value = attachment.args.get(name).filter(|value| !value.is_empty());
        value.cloned().ok_or(Fault::NotKubernetes { name })
    };
    let uid = arg("K8S_POD_UID").ok().map(PodUid);
    match uid.as_ref().filter(|uid| !store::is_file_name(uid)) {
        Some(PodUid(uid)) => Err(Fault::BadUid { uid: uid.clone() }),
        None => Ok(PodRef {
            namespace: arg("K8S_POD_NAMESPACE")?,
            name: arg("K8S_POD_NAME")?,
            uid,
        }),
    }
}

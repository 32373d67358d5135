// SPDX-License-Identifier: Apache-2.0
//! How a sandbox comes to be steered, and stays so.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use culvert_api::cni::{Attachment, Response};

use super::{
    Fault,
    actor::{Actor, open},
    leave::DRAIN,
    state::{Attached, Pace, State, Told},
};
use crate::{
    desired::{self, Problem, Subject, Wanted, exclusions::Exclusions},
    enrolment::{self, Differences, Enrolment, Namespace, sysctl},
    netns::Netns,
    proxy_link::hub::Handover,
    store::{self, Interface, Interfaces, Phase, Record},
};

/// How often is told what somebody does to a pod again and again; the metrics count the rest.
const TELL_AGAIN: Duration = Duration::from_secs(60);

// === impl Actor ===

impl Actor {
    /// A sandbox is new.
    pub(super) async fn attach(
        &mut self,
        attachment: &Attachment,
        path: PathBuf,
        wanted: &Wanted,
        netns: Netns,
    ) -> Result<(), Fault> {
        let sysctls = netns.run(sysctl::read).await?;
        let record = Record {
            workload: wanted.workload.clone(),
            cookie: netns.cookie(),
            netns: path,
            container_id: attachment.container_id.clone(),
            interfaces: Interfaces::default(),
            phase: Phase::Unmeshed,
            exclusions: Exclusions::default(),
            sysctls: sysctls.map_err(enrolment::Error::from)?,
            enrolled_live: None,
        };
        self.hold(record, netns);
        Ok(())
    }

    /// An interface of the sandbox is added.
    pub(super) fn add_interface(&mut self, interface: Interface) -> Result<(), store::Error> {
        if let Some(attached) = &mut self.attached {
            attached.record.interfaces.add(interface);
        }
        self.save()
    }

    /// Takes over what an earlier agent left.
    pub(super) async fn restore(&mut self, record: Record) -> Response {
        let netns = match open(&record.netns).await {
            Ok(netns) if netns.cookie() == record.cookie => netns,
            Err(Fault::Netns(error)) if !error.is_gone() => {
                tracing::error!(
                    pod.name = %record.workload, %error,
                    "Could not look at a pod of an earlier agent: it keeps refusing connections"
                );
                self.unseen = Some(record);
                return Fault::Netns(error).into();
            }
            _ => {
                self.forget(&record).await;
                return self.done();
            }
        };
        let (phase, live) = (record.phase, record.is_live(SystemTime::now()));
        self.hold(record, netns);
        match phase {
            Phase::Unmeshed => {}
            Phase::Draining => self.resume_draining().await,
            // Whatever is wanted now: the proxy has to have the pod to withdraw it.
            Phase::Enrolled => {
                if let Err(fault) = self.steer(live).await {
                    return fault.into();
                }
            }
        }
        self.done()
    }

    /// What could not be looked at may be looked at now.
    pub(super) async fn look_again(&mut self) {
        if let Some(record) = self.unseen.take() {
            drop(self.restore(record).await);
        }
    }

    /// Steers the pod.
    pub(super) async fn enrol(&mut self, wanted: &Wanted, live: bool) -> Result<(), Fault> {
        if let Some(attached) = &mut self.attached {
            attached.record.workload = wanted.workload.clone();
            // An agent that dies before it announces the pod leaves that to the next one.
            attached.record.enrolled_live = live.then(SystemTime::now);
            attached.record.exclusions = wanted.mesh.clone().unwrap_or_default();
        }
        self.steer(live).await
    }

    /// What was done is undone when a later step fails, unless an earlier agent steered the pod:
    /// then it is cut off until steering works again.
    pub(super) async fn steer(&mut self, live: bool) -> Result<(), Fault> {
        let was_steered = self.is_recorded_as(Phase::Enrolled);
        let Err((namespace, fault)) = self.set_up(live).await else {
            return Ok(());
        };
        match was_steered {
            true => self.cut_off().await,
            false => self.undo(namespace.as_ref()).await,
        }
        Err(self.failed(fault))
    }

    /// The pod's programs refuse connections that they have no listener for; its connect() fails
    /// at once, whatever became of its rules.
    async fn cut_off(&self) {
        let Some(attached) = &self.attached else {
            return;
        };
        self.shared.metrics.cut_off.inc();
        let cookie = attached.record.cookie.0;
        let cut = self.shared.ebpf.run(move |node| node.set_up(cookie, false));
        if let Err(error) = cut.await {
            tracing::error!(netns.cookie = cookie, %error, "Could not cut off a pod");
        }
    }

    pub(super) fn is_recorded_as(&self, phase: Phase) -> bool {
        let recorded = self.attached.as_ref().map(|attached| attached.record.phase);
        recorded == Some(phase)
    }

    async fn set_up(&mut self, live: bool) -> Result<(), (Option<Namespace>, Fault)> {
        let Some(attached) = &mut self.attached else {
            return Ok(());
        };
        attached.record.phase = Phase::Enrolled;
        let netns = attached.netns.clone();
        let exclusions = attached.record.exclusions.clone();
        self.save().map_err(|error| (None, error.into()))?;
        let namespace = Namespace::open(netns).await;
        let namespace = namespace.map_err(|error| (None, error.into()))?;
        let enrolment = Enrolment::set_up(namespace, &self.shared.ebpf, &exclusions).await;
        let enrolment = enrolment.map_err(|(namespace, error)| (Some(namespace), error.into()))?;
        self.announce(&enrolment, live);
        self.change(|_| State::Enrolled(enrolment));
        Ok(())
    }

    /// Hands the pod over to the proxies.
    pub(super) fn announce(&self, enrolment: &Enrolment, live: bool) {
        let Some(attached) = &self.attached else {
            return;
        };
        let handover = Handover {
            workload: attached.record.workload.clone(),
            addresses: enrolment.own().all.clone(),
            live,
            listeners: enrolment.listeners().named(),
            netns: enrolment.netns().clone(),
        };
        self.shared.hub.announce(&attached.record.key(), handover);
        tracing::info!(
            pod.name = %attached.record.workload, pod.uid = %attached.record.workload.uid,
            netns.cookie = attached.record.cookie.0, addresses = ?enrolment.own().all, live,
            "Enrolled a pod"
        );
    }

    /// Best effort: what can't be undone is logged. The rules stay while there are connections
    /// through the proxy, whose payload would leave in plaintext without them.
    pub(super) async fn undo(&mut self, namespace: Option<&Namespace>) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        attached.record.phase = Phase::Draining;
        if let Some(namespace) = namespace {
            let detached = enrolment::detach(&self.shared.ebpf, namespace.netns()).await;
            let restored = match namespace.has_marked_connections().await {
                Ok(false) => {
                    let restored = namespace.restore(&attached.record.sysctls).await;
                    restored.map(|()| attached.record.phase = Phase::Unmeshed)
                }
                marked => marked.map(drop),
            };
            for error in [detached, restored].into_iter().filter_map(Result::err) {
                tracing::error!(
                    container.id = self.container_id, %error,
                    "Could not undo the enrolment of a pod"
                );
            }
        }
        self.log_save();
    }

    fn failed(&mut self, fault: Fault) -> Fault {
        let Some(attached) = &self.attached else {
            return fault;
        };
        let times = match attached.state {
            State::Failed(times) => times.saturating_add(1),
            _ => 1,
        };
        tracing::error!(
            pod.name = %attached.record.workload, times, error = %fault,
            "Could not steer a pod"
        );
        self.shared
            .reports
            .tell(not_steered(&attached.record, &fault));
        self.change(|_| State::Failed(times));
        self.wake_in(Duration::from_secs(1 << times.min(6)));
        fault
    }

    /// It failed before.
    pub(super) async fn retry(&mut self) {
        match self.wanted() {
            Some(wanted) if wanted.mesh.is_some() => drop(self.enrol(&wanted, true).await),
            Some(_) => self.give_up().await,
            None if self.is_recorded_as(Phase::Enrolled) => drop(self.steer(false).await),
            None => {}
        }
    }

    /// What steers the pod, or its addresses, may have changed.
    pub(super) async fn look(&mut self) {
        self.refresh().await;
        self.repair().await;
    }

    /// An address may have come or gone.
    async fn refresh(&mut self) {
        if let Err(error) = self.try_refresh().await {
            if self.may_tell(|told| &mut told.trouble) {
                tracing::warn!(
                    container.id = self.container_id, %error,
                    "Could not follow a pod's addresses"
                );
            }
            self.wake_in(DRAIN);
        }
    }

    fn may_tell(&mut self, what: impl FnOnce(&mut Told) -> &mut Pace) -> bool {
        let told = self.attached.as_mut().map(|attached| &mut attached.told);
        told.is_some_and(|told| what(told).allows(TELL_AGAIN))
    }

    /// When the pod's rules, routes or programs can't follow, it is cut off until they can.
    pub(super) async fn try_refresh(&mut self) -> Result<(), Fault> {
        let Some(attached) = &mut self.attached else {
            return Ok(());
        };
        let key = attached.record.key();
        let Some(enrolment) = attached.enrolment_mut() else {
            return Ok(());
        };
        let refreshed = enrolment.refresh(&self.shared.ebpf).await;
        let addresses = enrolment.own().all.clone();
        match refreshed {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(enrolment = %key, ?addresses, "The addresses of a pod changed");
                self.shared.hub.readdress(&key, addresses);
            }
            Err(error) => {
                self.cut_off_unless_settled().await;
                return Err(error.into());
            }
        }
        Ok(())
    }

    async fn cut_off_unless_settled(&mut self) {
        let enrolment = self.attached.as_ref().and_then(Attached::enrolment);
        if enrolment.is_some_and(|enrolment| !enrolment.is_settled()) {
            if self.may_tell(|told| &mut told.cut_off) {
                tracing::error!(
                    container.id = self.container_id,
                    "What steers a pod could not be set: the pod is cut off until it can"
                );
            }
            self.cut_off().await;
            self.wake_in(DRAIN);
        }
    }

    /// Sets again what somebody took away from a steered pod.
    async fn repair(&mut self) {
        if let Err(error) = self.try_repair().await {
            if self.may_tell(|told| &mut told.trouble) {
                tracing::error!(container.id = self.container_id, %error, "Could not repair a pod");
            }
            self.cut_off_unless_settled().await;
        }
    }

    async fn try_repair(&mut self) -> Result<(), Fault> {
        let enrolment = self.attached.as_ref().and_then(Attached::enrolment);
        // One that is cut off is tried again by itself.
        let Some(enrolment) = enrolment.filter(|enrolment| enrolment.is_settled()) else {
            return Ok(());
        };
        let found = enrolment.differences(&self.shared.ebpf).await?;
        if found.is_empty() {
            return Ok(());
        }
        let listening = enrolment.listeners().are_listening();
        self.note_repair(&found);
        if !listening {
            return self.steer(false).await;
        }
        match self.attached.as_mut().and_then(Attached::enrolment_mut) {
            Some(enrolment) => Ok(enrolment.repair(&self.shared.ebpf, &found).await?),
            None => Ok(()),
        }
    }

    fn note_repair(&mut self, found: &Differences) {
        self.shared.metrics.repairs.inc();
        if self.may_tell(|told| &mut told.repair) {
            tracing::warn!(
                container.id = self.container_id,
                differences = found.all().join("; "),
                "A pod is not steered as it was left: setting it up again. What follows within a \
                 minute is only counted"
            );
        }
    }

    /// The netlink connection into the pod broke.
    pub(super) async fn reconnect(&mut self) {
        tracing::warn!(
            container.id = self.container_id,
            "Lost a netlink connection into a pod"
        );
        drop(self.steer(false).await);
        self.wake_in(DRAIN);
    }

    /// What the pod asks to be left alone may have changed.
    pub(super) async fn exclude(&mut self, exclusions: Exclusions) {
        let Some(attached) = &mut self.attached else {
            return;
        };
        if attached.record.exclusions == exclusions {
            return;
        }
        let Some(enrolment) = attached.enrolment_mut() else {
            return;
        };
        match enrolment.exclude(&self.shared.ebpf, &exclusions).await {
            Ok(()) => {
                attached.record.exclusions = exclusions;
                self.log_save();
            }
            Err(error) => {
                tracing::error!(
                    container.id = self.container_id, %error,
                    "Could not change what a pod excludes"
                );
                self.wake_in(DRAIN);
            }
        }
    }
}

fn not_steered(record: &Record, fault: &Fault) -> Problem {
    let pod = &record.workload;
    let error = fault.to_string();
    Problem {
        subject: Subject::pod(&pod.namespace, &pod.name, Some(&pod.uid.0)),
        fault: desired::Fault::NotSteered { error },
    }
}

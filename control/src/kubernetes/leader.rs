// SPDX-License-Identifier: Apache-2.0
//! Which replica does what only one may do: the holder of the Lease `culvert-control`, as
//! <https://pkg.go.dev/k8s.io/client-go/tools/leaderelection> elects.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use tokio::{sync::watch, time::timeout};

/// The name of the Lease.
const NAME: &str = "culvert-control";

/// How long the holder may be silent before another takes its place.
const LIFETIME: Duration = Duration::from_secs(15);

/// How long after its last renewal the holder itself still takes itself for the leader.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often each replica looks.
const LOOK: Duration = Duration::from_secs(3);

/// A candidate for the Lease.
#[derive(Debug)]
pub(crate) struct Candidate {
    leases: Api<Lease>,
    replica: String,
    /// The Lease as another holds it, and since when it has not changed.
    other: Option<(LeaseSpec, Instant)>,
    renewed: Option<Instant>,
    leading: watch::Sender<bool>,
}

// === impl Candidate ===

impl Candidate {
    pub(crate) fn new(leases: Api<Lease>, replica: String) -> (Self, watch::Receiver<bool>) {
        let (leading, led) = watch::channel(false);
        let candidate = Self {
            leases,
            replica,
            other: None,
            renewed: None,
            leading,
        };
        (candidate, led)
    }

    /// Stands for as long as the process runs.
    pub(crate) async fn run(mut self) {
        loop {
            match timeout(LOOK, self.look()).await {
                Ok(Ok(leads)) => self.renewed = leads.then(Instant::now),
                Ok(Err(error)) => tracing::debug!(%error, "Could not look at the leader's Lease"),
                Err(_) => tracing::debug!("No answer when looking at the leader's Lease"),
            }
            self.settle();
            tokio::time::sleep(LOOK.mul_f64(0.8 + rand::random::<f64>() * 0.4)).await;
        }
    }

    fn settle(&self) {
        let leads = self
            .renewed
            .is_some_and(|renewed| renewed.elapsed() < DEADLINE);
        if self.leading.send_replace(leads) != leads {
            tracing::info!(leads, "This replica's part in leading changed");
        }
    }

    /// Takes or renews the Lease where that is possible. Says whether it is held. The API server
    /// refuses a write if another replica's came in between.
    async fn look(&mut self) -> kube::Result<bool> {
        let Some(lease) = self.leases.get_opt(NAME).await? else {
            let lease = self.lease(None);
            let created = self.leases.create(&PostParams::default(), &lease).await;
            return unless_conflict(created);
        };
        if !self.may_take(&lease, Instant::now()) {
            return Ok(false);
        }
        let next = self.lease(Some(&lease));
        let replaced = self
            .leases
            .replace(NAME, &PostParams::default(), &next)
            .await;
        unless_conflict(replaced)
    }

    /// It is ours, nobody's, or its holder was silent for long.
    fn may_take(&mut self, lease: &Lease, now: Instant) -> bool {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.replica {
            self.other = None;
            return true;
        }
        match &self.other {
            Some((other, since)) if *other == spec => {
                now.saturating_duration_since(*since) > LIFETIME
            }
            _ => {
                self.other = Some((spec, now));
                false
            }
        }
    }

    fn lease(&self, old: Option<&Lease>) -> Lease {
        let spec = old.and_then(|old| old.spec.clone()).unwrap_or_default();
        let ours = spec.holder_identity.as_ref() == Some(&self.replica);
        let now = MicroTime(Timestamp::now());
        let acquired = spec.acquire_time.clone().filter(|_| ours);
        let transitions = spec.lease_transitions.unwrap_or_default();
        Lease {
            metadata: old.map_or_else(named, |old| old.metadata.clone()),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.replica.clone()),
                lease_duration_seconds: i32::try_from(LIFETIME.as_secs()).ok(),
                acquire_time: acquired.or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions.saturating_add(i32::from(!ours))),
                ..spec
            }),
        }
    }
}

/// Gives the Lease up if this replica holds it, so that another need not wait for its end.
pub(crate) async fn resign(leases: &Api<Lease>, replica: &str) -> kube::Result<()> {
    let Some(mut lease) = leases.get_opt(NAME).await? else {
        return Ok(());
    };
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() != Some(replica) {
        return Ok(());
    }
    spec.holder_identity = None;
    unless_conflict(leases.replace(NAME, &PostParams::default(), &lease).await).map(drop)
}

fn named() -> ObjectMeta {
    ObjectMeta {
        name: Some(NAME.to_owned()),
        ..ObjectMeta::default()
    }
}

fn unless_conflict(written: kube::Result<Lease>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

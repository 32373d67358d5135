// SPDX-License-Identifier: Apache-2.0
//! One proxy's connection.

use std::{
    convert::Infallible,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use culvert_api::{
    agent::{FromAgent, FromProxy, SocketPool, VERSIONS},
    version::NoCommonVersion,
    workload::WorkloadKey,
};
use culvert_runtime::seqpacket::{Channel, Error, Message};
use tokio::{
    sync::{Semaphore, mpsc::UnboundedReceiver},
    time::{interval, timeout},
};

use super::{
    hub::{ConnectionId, Hub, Outgoing},
    pending::{LIMIT, Pending},
};
use crate::metrics::Metrics;

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a proxy may leave its messages unread.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// How many requests for sockets of one proxy are served or wait at a time.
const MAX_WANTS: usize = 1024;

/// The peer is not a proxy that this agent can work with.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Too old or too new.
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
    /// It said something else first.
    #[error("the peer did not begin with a hello")]
    NoHello,
    /// It said nothing.
    #[error("the peer sent no hello within {} seconds", HELLO_TIMEOUT.as_secs())]
    Silent,
    /// The connection broke.
    #[error(transparent)]
    Channel(#[from] Error),
}

/// Spares the log: of a proxy's offences only each that doubles their number is told. All are counted.
#[derive(Debug, Default)]
struct Offences(AtomicU64);

/// A proxy's connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// It broke, or the proxy closed it.
    #[error(transparent)]
    Channel(#[from] Error),
    /// What waits to be sent, with its descriptors, would become more and more.
    #[error("the proxy has read nothing for {} seconds", READ_PATIENCE.as_secs())]
    NotReading,
}

/// Both sides say what they speak, and agree on a version.
pub async fn greet(channel: &Channel, node: &str) -> Result<u32, Refused> {
    let hello = FromAgent::Hello {
        versions: VERSIONS,
        node: node.to_owned(),
    };
    channel.send(&hello, &[]).await?;
    let answer = timeout(HELLO_TIMEOUT, channel.recv()).await;
    match answer.map_err(|_| Refused::Silent)??.body {
        FromProxy::Hello { versions } => Ok(VERSIONS.agree(versions)?),
        _ => Err(Refused::NoHello),
    }
}

/// Serves a proxy, which speaks that version, until it goes away.
pub async fn serve(channel: Channel, version: u32, hub: &Hub, metrics: &Metrics) {
    let (id, outgoing) = hub.connect();
    metrics.proxies.inc();
    tracing::info!(connection = id.0, version, "A proxy connected");
    let connection = Connection {
        channel,
        id,
        hub,
        metrics,
        pending: Pending::default(),
        wants: Arc::new(Semaphore::new(MAX_WANTS)),
        offences: Offences::default(),
    };
    let ended = tokio::select! {
        Err(error) = connection.write(outgoing) => error,
        Err(error) = connection.read() => error,
        never = connection.watch() => match never {},
    };
    hub.disconnect(id);
    metrics.proxies.dec();
    note_end(id, &ended);
}

fn note_end(id: ConnectionId, ended: &Ended) {
    match ended {
        Ended::Channel(Error::Closed) => {
            tracing::info!(connection = id.0, "A proxy disconnected");
        }
        error => tracing::warn!(connection = id.0, %error, "Lost the connection of a proxy"),
    }
}

/// It already said what it speaks.
#[derive(Debug, thiserror::Error)]
#[error("it is a second hello")]
struct SecondHello;

/// It answers nothing.
#[derive(Debug, thiserror::Error)]
#[error("no message {0} waits for an answer")]
struct NothingSent(u64);

struct Connection<'a> {
    channel: Channel,
    id: ConnectionId,
    hub: &'a Hub,
    metrics: &'a Metrics,
    pending: Pending,
    wants: Arc<Semaphore>,
    offences: Offences,
}

impl Offences {
    /// How many there are now, if that is to be told.
    fn tell(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        count.is_power_of_two().then_some(count)
    }
}

impl Connection<'_> {
    async fn write(&self, mut outgoing: UnboundedReceiver<Outgoing>) -> Result<Infallible, Ended> {
        while let Some(Outgoing { body, fds }) = outgoing.recv().await {
            self.pending.sending(&body, Instant::now());
            let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            let sent = timeout(READ_PATIENCE, self.channel.send(&body, &borrowed));
            sent.await.map_err(|_| Ended::NotReading)??;
        }
        Err(Error::Closed.into())
    }

    async fn read(&self) -> Result<Infallible, Ended> {
        loop {
            match self.channel.recv().await {
                Ok(message) => self.handle(message),
                Err(Error::Malformed(error)) => self.unreadable(error)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A later release may say what this one does not know, but only in JSON.
    fn unreadable(&self, error: serde_json::Error) -> Result<(), Ended> {
        self.metrics.unreadable.inc();
        if !error.is_data() {
            return Err(Error::Malformed(error).into());
        }
        self.ignored("a message that is unknown", &error);
        Ok(())
    }

    fn ignored(&self, what: &str, error: &impl std::fmt::Display) {
        if let Some(offences) = self.offences.tell() {
            let connection = self.id.0;
            tracing::warn!(connection, offences, %error, "Ignored {what} of a proxy");
        }
    }

    fn handle(&self, Message { body, fds, .. }: Message<FromProxy>) {
        match body {
            FromProxy::Hello { .. } => self.ignored("a message", &SecondHello),
            FromProxy::Ack { seq } => self.acked(seq),
            FromProxy::Nack { seq, reason } => self.nacked(seq, &reason),
            FromProxy::Want { key, pool, count } => self.want(key, pool, count),
            FromProxy::Keep { identity } => {
                if let Err(error) = self.hub.keep(identity, fds) {
                    self.ignored("a key", &error);
                }
            }
            FromProxy::Withdrawn { key } => self.hub.withdrawn_by(self.id, &key),
        }
    }

    fn acked(&self, seq: u64) {
        if let Some(key) = self.pending.answered(seq).and_then(|sent| sent.key) {
            self.hub.acked(&key);
        }
    }

    fn nacked(&self, seq: u64, reason: &str) {
        self.metrics.nacks.inc();
        let Some(sent) = self.pending.answered(seq) else {
            return self.ignored("a nack", &NothingSent(seq));
        };
        let what = sent.what;
        let key = sent.key.map(|key| key.to_string());
        tracing::warn!(
            connection = self.id.0,
            seq,
            what,
            enrolment = key,
            reason,
            "A proxy could not carry a message out"
        );
    }

    /// On a task of its own: making sockets takes a while, and there may have to be a pause.
    fn want(&self, key: WorkloadKey, pool: SocketPool, count: usize) {
        let Ok(permit) = Arc::clone(&self.wants).try_acquire_owned() else {
            let failed = self.metrics.sockets_failed.with_label_values(&["flood"]);
            failed.inc();
            return;
        };
        let (hub, id) = (self.hub.clone(), self.id);
        tokio::spawn(async move {
            hub.sockets(id, &key, pool, count).await;
            drop(permit);
        });
    }

    async fn watch(&self) -> Infallible {
        let mut ticks = interval(LIMIT / 4);
        loop {
            ticks.tick().await;
            for sent in self.pending.late(Instant::now()) {
                self.metrics.unacknowledged.inc();
                let key = sent.key.map(|key| key.to_string());
                tracing::warn!(
                    connection = self.id.0,
                    what = sent.what,
                    enrolment = key,
                    "A proxy did not acknowledge a message within {} seconds",
                    LIMIT.as_secs()
                );
            }
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What users can't have, and trouble with pods, as events of their objects.
//!
//! An event's name follows from what it says: who says it again, this agent or another or a later
//! one, is told that it is there already, and nothing is repeated. kube's own recorder names events
//! by the time, and takes two of the same reason for one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use culvert_api::kubernetes::AGENT_EVENTS;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    desired::{Desired, Fault, Kind, Problem, Severity, Subject},
    metrics::Metrics,
};

/// So many at once, and then one each [`PACE`]: a broken manifest of a thousand pods must not
/// bury the API server.
const BURST: u32 = 20;
const PACE: Duration = Duration::from_secs(1);

/// What waits to be told. Later ones are dropped and counted.
const WAITING: usize = 1024;

/// An event is tried so often, a second apart at first, then two, then four …
const TRIES: u32 = 5;

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the same trouble of a pod is not told again; the API server keeps events for an hour.
const AGAIN: Duration = Duration::from_secs(3600);

/// The limits of <https://github.com/kubernetes/kubernetes/blob/v1.33.0/pkg/apis/core/validation/events.go>
/// and of a name, in bytes.
const NOTE: usize = 1024;
const NAME: usize = 253;

/// Where events of cluster-scoped objects are: older API servers take no other place for them.
const OF_CLUSTER: &str = "kube-system";

const ACTION: &str = "Mesh";

/// Makes events.
pub struct Events {
    client: Client,
    node: String,
    metrics: Metrics,
    /// Of what is wanted now.
    told: BTreeSet<Problem>,
    /// Trouble by event, and when.
    troubles: BTreeMap<String, Instant>,
    waiting: VecDeque<Problem>,
    budget: Budget,
}

/// How many may be told now.
struct Budget {
    left: u32,
    since: Instant,
}

// === impl Events ===

impl Events {
    /// As the agent of `node`.
    pub fn new(client: Client, node: &str, metrics: Metrics) -> Self {
        let budget = Budget {
            left: BURST,
            since: Instant::now(),
        };
        Self {
            client,
            node: node.to_owned(),
            metrics,
            told: BTreeSet::new(),
            troubles: BTreeMap::new(),
            waiting: VecDeque::new(),
            budget,
        }
    }

    /// Tells each problem of `desired` once, and what comes by `trouble` once an hour.
    pub async fn follow(
        mut self,
        mut desired: watch::Receiver<Arc<Desired>>,
        mut trouble: mpsc::Receiver<Problem>,
    ) -> Infallible {
        loop {
            let now = Arc::clone(&desired.borrow_and_update());
            self.take_problems(&now.problems);
            while let Ok(problem) = trouble.try_recv() {
                self.take_trouble(problem);
            }
            if let Some(problem) = self.waiting.pop_front() {
                self.budget.wait().await;
                self.publish(&problem).await;
                continue;
            }
            tokio::select! {
                Ok(()) = desired.changed() => {}
                Some(problem) = trouble.recv() => self.take_trouble(problem),
                else => std::future::pending().await,
            }
        }
    }

    /// What is gone and comes back is told again.
    fn take_problems(&mut self, now: &BTreeSet<Problem>) {
        let new: Vec<_> = now.difference(&self.told).cloned().collect();
        if new.is_empty() && now.len() == self.told.len() {
            return;
        }
        self.told = now.clone();
        for problem in new {
            self.wait(problem);
        }
    }

    fn take_trouble(&mut self, problem: Problem) {
        self.troubles.retain(|_, told| told.elapsed() < AGAIN);
        let name = name(&problem);
        if self.troubles.insert(name, Instant::now()).is_none() {
            self.wait(problem);
        }
    }

    fn wait(&mut self, problem: Problem) {
        if self.waiting.len() < WAITING {
            self.waiting.push_back(problem);
        } else {
            self.count("dropped");
        }
    }

    async fn publish(&self, problem: &Problem) {
        let event = event(problem, &self.node, Timestamp::now());
        let namespace = event.metadata.namespace.as_deref().unwrap_or(OF_CLUSTER);
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        for tries in 0..TRIES {
            let params = PostParams::default();
            let created = timeout(PATIENCE, events.create(&params, &event)).await;
            match result(created.map_err(|_| "no answer")) {
                Ok(result) => return self.count(result),
                Err(error) => tracing::debug!(%error, "Could not make an event"),
            }
            sleep(Duration::from_secs(1 << tries)).await;
        }
        self.count("failed");
        tracing::warn!(problem = %problem, "Could not make an event of this");
    }

    fn count(&self, result: &str) {
        self.metrics.events.with_label_values(&[result]).inc();
    }
}

/// An error that another try may mend, else what became of it.
fn result(
    created: Result<kube::Result<Event>, &'static str>,
) -> Result<&'static str, Box<dyn std::error::Error + Send + Sync>> {
    match created? {
        Ok(_) => Ok("told"),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok("repeated"),
        // Its namespace is gone, or goes.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 422) => {
            tracing::warn!(error = %status, "The API server refused an event");
            Ok("refused")
        }
        Err(error) => Err(error.into()),
    }
}

// === impl Budget ===

impl Budget {
    async fn wait(&mut self) {
        if self.left == 0 {
            let due = self.since + PACE;
            tokio::time::sleep_until(due).await;
        }
        let paces = self.since.elapsed().as_millis() / PACE.as_millis();
        let earned = u32::try_from(paces).unwrap_or(BURST).min(BURST);
        if earned > 0 {
            self.left = (self.left + earned).min(BURST);
            self.since = Instant::now();
        }
        self.left = self.left.saturating_sub(1);
    }
}

fn event(problem: &Problem, node: &str, now: Timestamp) -> Event {
    let Problem { subject, fault } = problem;
    Event {
        metadata: ObjectMeta {
            name: Some(name(problem)),
            namespace: Some(namespace(subject).to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(AGENT_EVENTS.to_owned()),
        reporting_instance: Some(node.to_owned()),
        action: Some(ACTION.to_owned()),
        reason: Some(fault.reason().to_owned()),
        type_: Some(type_of(fault).to_owned()),
        note: Some(cut(&sentence(fault), NOTE).to_owned()),
        regarding: Some(reference(subject)),
        ..Event::default()
    }
}

/// Trouble has an error's words in it, which may differ each time.
fn name(Problem { subject, fault }: &Problem) -> String {
    let mut hasher = DefaultHasher::new();
    (&subject.uid, fault.reason()).hash(&mut hasher);
    if !matches!(fault, Fault::NotSteered { .. }) {
        fault.to_string().hash(&mut hasher);
    }
    let end = format!(".culvert-{:016x}", hasher.finish());
    format!("{}{end}", cut(&subject.name, NAME - end.len()))
}

fn namespace(subject: &Subject) -> &str {
    match subject.kind {
        Kind::Pod => &subject.namespace,
        Kind::Namespace => OF_CLUSTER,
    }
}

fn reference(subject: &Subject) -> ObjectReference {
    let (kind, namespace) = match subject.kind {
        Kind::Pod => ("Pod", Some(subject.namespace.clone())),
        Kind::Namespace => ("Namespace", None),
    };
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(subject.name.clone()),
        namespace,
        uid: Some(subject.uid.clone()),
        ..ObjectReference::default()
    }
}

fn type_of(fault: &Fault) -> &'static str {
    match fault.severity() {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    }
}

fn sentence(fault: &Fault) -> String {
    let text = fault.to_string();
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase());
    first.into_iter().flatten().chain(chars).collect()
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(uid: &str, fault: Fault) -> Problem {
        Problem {
            subject: Subject::pod("shop", "web", Some(uid)),
            fault,
        }
    }

    fn not_steered(error: &str) -> Fault {
        let error = error.to_owned();
        Fault::NotSteered { error }
    }

    #[test]
    fn an_event_is_the_same_whoever_tells_it() {
        let of = |uid, fault| name(&problem(uid, fault));
        assert_eq!(of("u", Fault::HostNetwork), of("u", Fault::HostNetwork));
        assert_ne!(of("u", Fault::HostNetwork), of("v", Fault::HostNetwork));
        assert_ne!(of("u", Fault::HostNetwork), of("u", Fault::Windows));
        assert_eq!(of("u", not_steered("a")), of("u", not_steered("b")));
    }

    #[test]
    fn an_event_keeps_to_the_limits_of_the_api_server() {
        let subject = Subject::pod("shop", &"ü".repeat(253), Some("u"));
        let fault = not_steered(&"ü".repeat(2000));
        let event = event(&Problem { subject, fault }, "n1", Timestamp::UNIX_EPOCH);
        let length = |text: Option<String>| text.map(|text| text.len()).unwrap_or_default();
        assert!((NOTE - 2..=NOTE).contains(&length(event.note)));
        assert!(length(event.metadata.name) <= NAME);
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
    }

    #[test]
    fn a_namespaces_event_is_where_the_clusters_are() {
        let subject = Subject::namespace("shop", Some("u"));
        let fault = Fault::Ingress;
        let event = event(&Problem { subject, fault }, "n1", Timestamp::UNIX_EPOCH);
        assert_eq!(event.metadata.namespace.as_deref(), Some("kube-system"));
        let regarding = event.regarding.unwrap_or_default();
        assert_eq!(regarding.kind.as_deref(), Some("Namespace"));
        assert_eq!(regarding.namespace, None);
        assert_eq!(event.type_.as_deref(), Some("Normal"));
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_at_once_and_then_one_a_second() {
        let mut budget = Budget {
            left: BURST,
            since: Instant::now(),
        };
        let start = Instant::now();
        for _ in 0..BURST {
            budget.wait().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..5 {
            budget.wait().await;
        }
        assert_eq!(start.elapsed(), PACE * 5);
    }
}

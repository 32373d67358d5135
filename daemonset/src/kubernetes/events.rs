// SPDX-License-Identifier: Apache-2.0
//! What users can't have, and trouble with pods, as events of their objects.
//!
//! An event's name follows from what it says: who says it again, this agent or another or a later
//! one, is told that it is there already, and nothing is twice. kube's own recorder names events
//! by the time, and takes two of the same reason for one.

mod agenda;

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use culvert_api::kubernetes::AGENT_EVENTS;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use self::agenda::{Agenda, Outcome, TRIES};
use crate::{
    desired::{Desired, Fault, Kind, Problem, Severity, Subject},
    metrics::Metrics,
};

/// So many at once, and then one each [`PACE`]: a broken manifest of a thousand pods must not
/// bury the API server.
const BURST: u32 = 20;
const PACE: Duration = Duration::from_secs(1);

/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long nobody looks when there is nothing to tell.
const REST: Duration = Duration::from_secs(3600);

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
    agenda: Agenda,
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
            agenda: Agenda::default(),
            budget,
        }
    }

    /// Tells each problem of `desired` for as long as it stands, and what comes by `trouble`.
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
            let next = self.agenda.next();
            let next = next.map(|(due, problem)| (due, problem.clone()));
            let due = match next {
                Some((due, problem)) if due <= Instant::now() => {
                    self.budget.wait().await;
                    self.tell(&problem).await;
                    continue;
                }
                Some((due, _)) => due,
                None => Instant::now() + REST,
            };
            tokio::select! {
                Ok(()) = desired.changed() => {}
                Some(problem) = trouble.recv() => self.take_trouble(problem),
                () = sleep_until(due) => {}
            }
        }
    }

    fn take_problems(&mut self, now: &BTreeSet<Problem>) {
        let dropped = self.agenda.set(now);
        (0..dropped).for_each(|_| self.count("dropped"));
    }

    fn take_trouble(&mut self, problem: Problem) {
        if !self.agenda.trouble(problem) {
            self.count("dropped");
        }
    }

    async fn tell(&mut self, problem: &Problem) {
        let outcome = self.publish(problem).await;
        let failures = self.agenda.told(problem, outcome);
        match outcome {
            Outcome::Told => self.count("told"),
            Outcome::Repeated => self.count("repeated"),
            Outcome::Refused => self.count("refused"),
            // Once, however long it goes on.
            Outcome::Failed if failures == TRIES => {
                self.count("failed");
                tracing::warn!(problem = %problem, "Could not make an event of this so far");
            }
            Outcome::Failed => {}
        }
    }

    async fn publish(&self, problem: &Problem) -> Outcome {
        let event = event(problem, &self.node, Timestamp::now());
        let namespace = event.metadata.namespace.as_deref().unwrap_or(OF_CLUSTER);
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let created = timeout(PATIENCE, events.create(&params, &event)).await;
        created.map_or_else(
            |_| not_made(&format!("no answer within {} seconds", PATIENCE.as_secs())),
            outcome,
        )
    }

    fn count(&self, result: &str) {
        self.metrics.events.with_label_values(&[result]).inc();
    }
}

fn outcome(created: kube::Result<Event>) -> Outcome {
    match created {
        Ok(_) => Outcome::Told,
        Err(kube::Error::Api(status)) if status.code == 409 => Outcome::Repeated,
        // Its namespace is gone, or goes.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 422) => {
            tracing::warn!(error = %status, "The API server refused an event");
            Outcome::Refused
        }
        Err(error) => not_made(&error.to_string()),
    }
}

fn not_made(error: &str) -> Outcome {
    tracing::debug!(error, "Could not make an event");
    Outcome::Failed
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
    let words = match fault {
        Fault::NotSteered { .. } => String::new(),
        _ => fault.to_string(),
    };
    let hash = hash(&[&subject.uid, fault.reason(), &words]);
    let end = format!(".culvert-{hash:016x}");
    format!("{}{end}", cut(&subject.name, NAME - end.len()))
}

/// FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>), the same in each release: std's hasher may
/// be another one in the next version of Rust.
fn hash(words: &[&str]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
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
        // And in each release, so that an upgrade says nothing twice.
        assert_eq!(of("u", not_steered("a")), "web.culvert-d2073702e4e7b8bb");
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

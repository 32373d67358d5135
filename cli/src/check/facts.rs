// SPDX-License-Identifier: Apache-2.0
//! What the checks judge: the API server's answers as they came, and why some did not come.

use std::{collections::BTreeMap, fmt, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service},
    },
    apimachinery::pkg::version::Info,
    jiff::Timestamp,
};

/// What the API server answered.
pub type Answer<T> = Result<T, Refusal>;

/// A question that was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked, as in "list pods".
    pub asked: String,
    /// Why there is no answer.
    pub reason: Reason,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The object, or its kind, is not there.
    NotFound,
    /// The user may not ask that.
    Forbidden(String),
    /// The user is not who they say.
    Unauthorized(String),
    /// No answer came in this time.
    Late(Duration),
    /// The server can't be reached, or said something else.
    Other(String),
}

/// The API server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its version.
    pub version: Info,
    /// What its clock said and what ours said.
    pub clock: Option<Clock>,
}

/// Two clocks looked at together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Theirs, to the second.
    pub theirs: Timestamp,
    /// Ours before the question.
    pub before: Timestamp,
    /// Ours after the answer.
    pub after: Timestamp,
}

/// The kubelets' leases, which they renew every 10 s by their own clocks.
#[derive(Clone, Debug)]
pub struct Leases {
    /// When they were listed, by our clock.
    pub at: Timestamp,
    /// One a node.
    pub leases: Vec<Lease>,
}

/// What may be asked of the API server, and whether the user may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// As in "create".
    pub verb: &'static str,
    /// The API group; empty for the core.
    pub group: &'static str,
    /// As in "daemonsets".
    pub resource: &'static str,
    /// In the namespace of the installation, or in the whole cluster.
    pub namespaced: bool,
}

/// Before the installation.
#[derive(Debug)]
pub struct Before {
    /// The namespace that it will be installed in.
    pub namespace: String,
    /// The API server.
    pub server: Server,
    /// All nodes.
    pub nodes: Answer<Vec<Node>>,
    /// The kubelets' leases.
    pub leases: Answer<Leases>,
    /// The namespace, which need not be there.
    pub existing: Answer<Namespace>,
    /// A Deployment of control's name in it, which must not be there.
    pub control: Answer<Deployment>,
    /// What the installation needs, and the server's word on each.
    pub permissions: Vec<(Permission, Answer<bool>)>,
}

/// After the installation.
#[derive(Debug)]
pub struct After {
    /// The namespace that it is installed in.
    pub namespace: String,
    /// The release that should run.
    pub expected_version: String,
    /// When the facts were gathered.
    pub now: Timestamp,
    /// The API server.
    pub server: Server,
    /// All nodes.
    pub nodes: Answer<Vec<Node>>,
    /// The kubelets' leases.
    pub leases: Answer<Leases>,
    /// The namespaces with their annotations.
    pub namespaces: Answer<Vec<Namespace>>,
    /// The pods that are checked: of all namespaces, or of one.
    pub pods: Answer<Vec<Pod>>,
    /// Culvert's own pods.
    pub own: Answer<Vec<Pod>>,
    /// What was said of the pods that ask for the mesh and are not in it.
    pub events: Answer<Vec<Event>>,
    /// What was warned of in Culvert's namespace.
    pub own_events: Answer<Vec<Event>>,
    /// What agents warned of.
    pub warnings: Answer<Vec<Event>>,
    /// Control.
    pub control: Answer<Deployment>,
    /// The service of control.
    pub service: Answer<Service>,
    /// The agents.
    pub agent: Answer<DaemonSet>,
    /// The proxies.
    pub proxy: Answer<DaemonSet>,
    /// The trust anchors.
    pub anchors: Answer<ConfigMap>,
    /// The issuer.
    pub issuer: Answer<Secret>,
    /// What the admin servers of control's pods answered, by pod.
    pub admin: BTreeMap<String, AdminAnswer>,
    /// The metrics of ready proxies, of some if there are many, by pod.
    pub proxies: BTreeMap<String, Answer<String>>,
}

/// What an admin server answered through the API server's proxy.
#[derive(Clone, Debug)]
pub struct AdminAnswer {
    /// To `/ready`.
    pub ready: Answer<String>,
    /// To `/version`.
    pub version: Answer<String>,
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = &self.asked;
        match &self.reason {
            Reason::NotFound => write!(f, "could not {asked}: there is none"),
            Reason::Forbidden(why) | Reason::Unauthorized(why) | Reason::Other(why) => {
                write!(f, "could not {asked}: {why}")
            }
            Reason::Late(after) => {
                write!(f, "could not {asked}: no answer in {}s", after.as_secs())
            }
        }
    }
}

impl Refusal {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match &self.reason {
            Reason::NotFound => "install it with `culvert install | kubectl apply -f -`".to_owned(),
            Reason::Forbidden(_) => format!(
                "ask as somebody who may {}, or with --as; `kubectl auth can-i` tells",
                self.asked
            ),
            Reason::Unauthorized(_) => {
                "log in to the cluster again: the kubeconfig's credentials are refused".to_owned()
            }
            Reason::Late(_) | Reason::Other(_) => {
                "is the API server well? see `kubectl get --raw /readyz?verbose`".to_owned()
            }
        }
    }
}

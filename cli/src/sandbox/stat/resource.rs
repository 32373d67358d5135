// SPDX-License-Identifier: Apache-2.0
//! What statistics are of.

use std::{fmt, str::FromStr};

use crate::sandbox::{api::PodView, scrape::Sample};

/// All resources of a kind, or one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Which kind.
    pub kind: Kind,
    /// Which one.
    pub name: Option<String>,
}

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Deployments, and the pods without one.
    All,
    /// Deployments.
    Deployment,
    /// Pods.
    Pod,
    /// ServiceAccounts, which are the identities.
    ServiceAccount,
    /// Namespaces.
    Namespace,
}

/// What a pod belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    namespace: &'a str,
    name: &'a str,
    deployment: Option<&'a str>,
    service_account: &'a str,
}

// === impl Resource ===

impl Resource {
    /// The namespace, kind and name of the one that a pod belongs to, if it does.
    pub fn of(&self, pod: &Pod<'_>) -> Option<(String, Kind, String)> {
        let (kind, name) = match (self.kind, pod.deployment) {
            (Kind::All | Kind::Deployment, Some(name)) => (Kind::Deployment, name),
            (Kind::All, None) | (Kind::Pod, _) => (Kind::Pod, pod.name),
            (Kind::Deployment, None) => return None,
            (Kind::ServiceAccount, _) => (self.kind, pod.service_account),
            (Kind::Namespace, _) => (self.kind, pod.namespace),
        };
        let wanted = self.name.as_deref().is_none_or(|wanted| wanted == name);
        wanted.then(|| (pod.namespace.to_owned(), kind, name.to_owned()))
    }
}

impl FromStr for Resource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (kind, Some(name.to_owned())),
            None => (text, None),
        };
        let kind = match kind {
            "all" if name.is_none() => Kind::All,
            "deploy" | "deployment" | "deployments" => Kind::Deployment,
            "po" | "pod" | "pods" => Kind::Pod,
            "sa" | "serviceaccount" | "serviceaccounts" => Kind::ServiceAccount,
            "ns" | "namespace" | "namespaces" => Kind::Namespace,
            other => {
                return Err(format!(
                    "{other:?} is no kind: it may be all, deploy, po, sa or ns, or deploy/NAME and \
                     so on"
                ));
            }
        };
        Ok(Self { kind, name })
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}/{name}", self.kind.short()),
            None => f.write_str(self.kind.as_str()),
        }
    }
}

// === impl Kind ===

impl Kind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Deployment => "deployment",
            Self::Pod => "pod",
            Self::ServiceAccount => "serviceaccount",
            Self::Namespace => "namespace",
        }
    }

    /// Its name as kubectl abbreviates it.
    pub fn short(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Deployment => "deploy",
            Self::Pod => "po",
            Self::ServiceAccount => "sa",
            Self::Namespace => "ns",
        }
    }
}

// === impl Pod ===

impl<'a> From<&'a PodView> for Pod<'a> {
    fn from(pod: &'a PodView) -> Self {
        Self {
            namespace: &pod.namespace,
            name: &pod.name,
            deployment: pod.deployment.as_deref(),
            service_account: &pod.service_account,
        }
    }
}

impl<'a> From<&'a Sample> for Pod<'a> {
    fn from(sample: &'a Sample) -> Self {
        let deployment = sample.label("workload_kind") == "deployment";
        Self {
            namespace: sample.label("namespace"),
            name: sample.label("pod"),
            deployment: deployment.then(|| sample.label("workload_name")),
            service_account: sample.label("service_account"),
        }
    }
}

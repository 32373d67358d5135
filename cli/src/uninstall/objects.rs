// SPDX-License-Identifier: Apache-2.0
//! What an installation consists of, and in which order it goes.

use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use crate::install::{Error, Result};

/// The label of everything that the chart makes; its value is the namespace of control.
pub const LABEL: &str = "culvert.io/control-plane-ns";

/// The labels that only a namespace of Culvert's has.
pub const OF_NAMESPACE: [&str; 2] = [LABEL, "culvert.io/is-control-plane"];

/// Says who installed: `culvert` or `Helm`.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// A kind of object that an installation may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    group: &'static str,
    version: &'static str,
    /// As in a manifest.
    pub kind: &'static str,
    plural: &'static str,
    namespaced: bool,
}

/// An object of an installation.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its namespace; empty if it has none.
    pub namespace: String,
    helm: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind {
        group,
        version,
        kind,
        plural,
        namespaced,
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";

/// In the order in which they go: what works first, what it works with after it. The agent goes before all of them.
pub const KINDS: &[Kind] = &[
    kind("apps", "v1", "DaemonSet", "daemonsets", true),
    kind("apps", "v1", "Deployment", "deployments", true),
    kind(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        true,
    ),
    kind("", "v1", "Service", "services", true),
    kind("", "v1", "ConfigMap", "configmaps", true),
    kind("", "v1", "Secret", "secrets", true),
    kind("", "v1", "ResourceQuota", "resourcequotas", true),
    kind(RBAC, "v1", "RoleBinding", "rolebindings", true),
    kind(RBAC, "v1", "Role", "roles", true),
    kind("", "v1", "ServiceAccount", "serviceaccounts", true),
    kind("", "v1", "Namespace", "namespaces", false),
    kind(
        ADMISSION,
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        false,
    ),
    kind(
        ADMISSION,
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        false,
    ),
    kind(
        RBAC,
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        false,
    ),
    kind(RBAC, "v1", "ClusterRole", "clusterroles", false),
    kind(
        "security.openshift.io",
        "v1",
        "SecurityContextConstraints",
        "securitycontextconstraints",
        false,
    ),
];

// === impl Kind ===

impl Kind {
    fn resource(self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }

    fn api_version(self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    fn api(self, client: Client, namespace: &str) -> Api<DynamicObject> {
        match self.namespaced {
            true => Api::namespaced_with(client, namespace, &self.resource()),
            false => Api::all_with(client, &self.resource()),
        }
    }
}

// === impl Object ===

impl Object {
    /// Whether it is the agents' DaemonSet.
    pub fn is_agent(&self) -> bool {
        self.kind.kind == "DaemonSet" && self.name == "culvert-agent"
    }

    /// Whether pods end with it.
    pub fn has_pods(&self) -> bool {
        matches!(self.kind.kind, "DaemonSet" | "Deployment")
    }

    /// Whether it is a namespace, with which all goes that is in it.
    pub fn is_namespace(&self) -> bool {
        self.kind.kind == "Namespace"
    }

    /// Whether Helm installed it.
    pub fn is_helms(&self) -> bool {
        self.helm
    }

    /// As people say it.
    pub fn title(&self) -> String {
        format!("{} {}", self.kind.kind, self.name)
    }

    /// Where it is asked for.
    pub fn api(&self, client: &Client) -> Api<DynamicObject> {
        self.kind.api(client.clone(), &self.namespace)
    }

    /// As much of a manifest as `kubectl delete` wants.
    pub fn manifest(&self) -> Value {
        let mut metadata = json!({"name": self.name});
        if self.kind.namespaced {
            metadata["namespace"] = self.namespace.as_str().into();
        }
        json!({"apiVersion": self.kind.api_version(), "kind": self.kind.kind, "metadata": metadata})
    }
}

/// All objects of an installation, in the order in which they go.
pub async fn find(client: &Client, namespace: &str) -> Result<Vec<Object>> {
    let mut found = Vec::new();
    let labelled = ListParams::default().labels(&format!("{LABEL}={namespace}"));
    for kind in KINDS {
        match kind.api(client.clone(), namespace).list(&labelled).await {
            Ok(list) => found.extend(list.items.iter().map(|item| object(*kind, item))),
            // A Kubernetes that does not know the kind has none.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::cluster(format!("list {}", kind.plural), &error)),
        }
    }
    found.sort_by_key(|object| !object.is_agent());
    Ok(found)
}

fn object(kind: Kind, item: &DynamicObject) -> Object {
    let labels = item.metadata.labels.as_ref();
    let manager = labels.and_then(|labels| labels.get(MANAGED_BY));
    Object {
        kind,
        name: item.metadata.name.clone().unwrap_or_default(),
        namespace: item.metadata.namespace.clone().unwrap_or_default(),
        helm: manager.is_some_and(|manager| manager == "Helm"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_chart_is_known() -> anyhow::Result<()> {
        let chart =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemonset/chart/templates");
        for file in std::fs::read_dir(chart)? {
            let text = std::fs::read_to_string(file?.path())?;
            for line in text.lines().filter_map(|line| line.strip_prefix("kind: ")) {
                assert!(KINDS.iter().any(|kind| kind.kind == line), "{line}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_manifest_names_what_is_to_go_and_no_more() {
        let object = |kind, namespace: &str| Object {
            kind,
            name: "culvert-agent".to_owned(),
            namespace: namespace.to_owned(),
            helm: false,
        };
        let agent = object(KINDS[0], "mesh");
        assert!(agent.is_agent());
        let expected = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "culvert-agent", "namespace": "mesh"}});
        assert_eq!(agent.manifest(), expected);
        let namespace = KINDS.iter().find(|kind| kind.kind == "Namespace").copied();
        let namespace = object(namespace.unwrap_or(KINDS[0]), "");
        assert_eq!(
            namespace.manifest(),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "culvert-agent"}})
        );
    }
}

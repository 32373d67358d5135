// SPDX-License-Identifier: Apache-2.0
//! What is in Culvert's namespace and is not Culvert's: keys, certificates, volumes, workloads. Deleting the namespace would
//! delete it, so all kinds that the API server knows are looked at, and what can't be looked at counts as being there.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIResource, APIResourceList, ObjectMeta};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
};

use super::objects::LABEL;
use crate::cluster::deep;

/// How many questions are open at once.
const AT_ONCE: usize = 8;
/// Of more objects of a kind nobody reads the names.
const MOST: u32 = 500;

/// Kinds that say something of other objects, or of processes, and are worth nothing without them.
const BESIDE: [&str; 3] = ["Event", "Endpoints", "Lease"];

/// What Kubernetes, or OpenShift, puts into every namespace.
const EVERYWHERE: [(&str, &str); 8] = [
    ("ServiceAccount", "default"),
    ("ConfigMap", "kube-root-ca.crt"),
    ("ConfigMap", "openshift-service-ca.crt"),
    ("ServiceAccount", "builder"),
    ("ServiceAccount", "deployer"),
    ("RoleBinding", "system:deployers"),
    ("RoleBinding", "system:image-builders"),
    ("RoleBinding", "system:image-pullers"),
];
/// On Secrets that Kubernetes makes for ServiceAccounts.
const OF_ACCOUNT: &str = "kubernetes.io/service-account.name";

/// An object of a namespace.
#[derive(Clone, Debug)]
struct Resident {
    kind: String,
    metadata: ObjectMeta,
}

/// Looks through a namespace, again and again while it is emptied.
pub struct Census<'a> {
    client: &'a Client,
    namespace: &'a str,
    /// The uids of all that was ever seen: what an object that is gone owned goes as well.
    seen: BTreeSet<String>,
}

// === impl Census ===

impl<'a> Census<'a> {
    /// Of a namespace.
    pub fn of(client: &'a Client, namespace: &'a str) -> Self {
        Self {
            client,
            namespace,
            seen: BTreeSet::new(),
        }
    }

    /// What is there and not Culvert's, as people say it; and what could not be listed.
    pub async fn strangers(&mut self) -> BTreeSet<String> {
        let (kinds, mut unknown) = kinds(self.client).await;
        let asked = kinds.iter().map(|kind| self.residents(kind));
        let answers: Vec<_> = stream::iter(asked)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut residents = Vec::new();
        for answer in answers {
            match answer {
                Ok(some) => residents.extend(some),
                Err(what) => _ = unknown.insert(what),
            }
        }
        let uids = residents.iter().filter_map(|it| it.metadata.uid.clone());
        self.seen.extend(uids);
        let ours = self.namespace;
        let strangers = residents
            .iter()
            .filter(|it| it.is_stranger(ours, &self.seen));
        unknown.extend(strangers.map(Resident::title));
        unknown
    }

    async fn residents(&self, kind: &ApiResource) -> Result<Vec<Resident>, String> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), self.namespace, kind);
        let list = match api.list_metadata(&ListParams::default().limit(MOST)).await {
            Ok(list) => list,
            // It went, or was never more than a name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => return Ok(vec![]),
            Err(error) => return Err(unlisted(&kind.plural, &error)),
        };
        let resident = |metadata| Resident {
            kind: kind.kind.clone(),
            metadata,
        };
        Ok(list
            .items
            .into_iter()
            .map(|item| resident(item.metadata))
            .collect())
    }
}

// === impl Resident ===

impl Resident {
    fn title(&self) -> String {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        format!("{} {name}", self.kind)
    }

    /// Whether it would be missed: it is neither Culvert's, nor anything that comes and goes with other objects.
    fn is_stranger(&self, ours: &str, seen: &BTreeSet<String>) -> bool {
        let labels = self.metadata.labels.as_ref();
        let is_ours = labels
            .and_then(|labels| labels.get(LABEL))
            .map(String::as_str)
            == Some(ours);
        let owners = self.metadata.owner_references.iter().flatten();
        let is_owned = owners.into_iter().any(|owner| seen.contains(&owner.uid));
        let is_going = self.metadata.deletion_timestamp.is_some();
        let is_beside = BESIDE.contains(&&*self.kind);
        !(is_ours || is_owned || is_going || is_beside || self.is_everywhere())
    }

    fn is_everywhere(&self) -> bool {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let annotations = self.metadata.annotations.as_ref();
        let is_token = annotations.is_some_and(|all| all.contains_key(OF_ACCOUNT));
        EVERYWHERE.contains(&(&*self.kind, name)) || (is_token && self.kind == "Secret")
    }
}

/// All kinds whose objects a namespace may hold, and what could not be asked for.
async fn kinds(client: &Client) -> (Vec<ApiResource>, BTreeSet<String>) {
    let mut kinds = BTreeMap::new();
    let mut unknown = BTreeSet::new();
    let groups = match client.list_api_groups().await {
        Ok(list) => list.groups,
        Err(error) => {
            unknown.insert(unlisted("kinds", &error));
            Vec::new()
        }
    };
    let versions = groups.into_iter().flat_map(|group| group.versions);
    let versions = versions.map(|version| version.group_version);
    // In the server's order, so that each kind is asked for in the version that it prefers.
    let asked = std::iter::once("v1".to_owned()).chain(versions);
    let asked = asked.map(|version| async move { (resources(client, &version).await, version) });
    let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    for (answer, version) in answers {
        match answer {
            Ok(list) => keep(&mut kinds, &version, list),
            Err(error) => _ = unknown.insert(unlisted(&format!("kinds of {version}"), &error)),
        }
    }
    (kinds.into_values().collect(), unknown)
}

async fn resources(client: &Client, version: &str) -> kube::Result<APIResourceList> {
    match version {
        "v1" => client.list_core_api_resources(version).await,
        _ => client.list_api_group_resources(version).await,
    }
}

fn keep(
    kinds: &mut BTreeMap<(String, String), ApiResource>,
    group_version: &str,
    list: APIResourceList,
) {
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    for resource in list.resources.into_iter().filter(is_deleted_with_namespace) {
        let kind = GroupVersionKind::gvk(group, version, &resource.kind);
        let key = (group.to_owned(), resource.name.clone());
        let resource = ApiResource::from_gvk_with_plural(&kind, &resource.name);
        kinds.entry(key).or_insert(resource);
    }
}

/// As the namespace controller tells: measurements and reviews can be listed, or made, but not deleted.
fn is_deleted_with_namespace(resource: &APIResource) -> bool {
    let can = |verb: &str| resource.verbs.iter().any(|known| known == verb);
    resource.namespaced && can("list") && can("delete")
}

fn unlisted(what: &str, error: &kube::Error) -> String {
    format!("{what} that could not be listed ({})", deep(error))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn is_stranger(kind: &str, metadata: Value) -> bool {
        let resident = Resident {
            kind: kind.to_owned(),
            metadata: serde_json::from_value(metadata).unwrap_or_else(|e| panic!("{e}")),
        };
        resident.is_stranger("culvert", &BTreeSet::from(["seen".to_owned()]))
    }

    #[test]
    fn what_nobody_else_would_make_again_is_missed() {
        let plain = json!({"name": "a"});
        for kind in [
            "Secret",
            "ConfigMap",
            "PersistentVolumeClaim",
            "Deployment",
            "Certificate",
        ] {
            assert!(is_stranger(kind, plain.clone()), "{kind}");
        }
        let of_other = json!({"name": "a", "labels": {LABEL: "mesh"}});
        assert!(is_stranger("Secret", of_other));
        let owned_elsewhere = json!({"name": "a", "ownerReferences": [owner("elsewhere")]});
        assert!(is_stranger("ConfigMap", owned_elsewhere));
        let of_release =
            json!({"name": "sh.helm.release.v1.other.v1", "labels": {"owner": "helm"}});
        assert!(is_stranger("Secret", of_release));
    }

    #[test]
    fn what_is_ours_or_comes_of_itself_is_not_missed() {
        assert!(!is_stranger(
            "Secret",
            json!({"name": "a", "labels": {LABEL: "culvert"}})
        ));
        assert!(!is_stranger(
            "Pod",
            json!({"name": "a", "ownerReferences": [owner("seen")]})
        ));
        assert!(!is_stranger(
            "Pod",
            json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"})
        ));
        assert!(!is_stranger("Lease", json!({"name": "a"})));
        assert!(!is_stranger(
            "ConfigMap",
            json!({"name": "kube-root-ca.crt"})
        ));
        assert!(!is_stranger(
            "Secret",
            json!({"name": "default-token-x", "annotations": {OF_ACCOUNT: "default"}})
        ));
    }

    fn owner(uid: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid})
    }

    #[test]
    fn kinds_are_asked_for_once_and_in_the_preferred_version() {
        let resource = |name: &str, kind: &str, verbs: Value| json!({"name": name, "kind": kind, "singularName": "", "namespaced": true, "verbs": verbs});
        let list = |version: &str, all: Value| -> APIResourceList {
            let list = json!({"groupVersion": version, "resources": all});
            serde_json::from_value(list).unwrap_or_else(|e| panic!("{e}"))
        };
        let mut kinds = BTreeMap::new();
        let both = json!(["list", "delete"]);
        let jobs = json!([
            resource("jobs", "Job", both.clone()),
            resource("jobs/status", "Job", json!(["get"]))
        ]);
        keep(&mut kinds, "batch/v1", list("batch/v1", jobs.clone()));
        let more = json!([
            jobs[0],
            resource("cronjobs", "CronJob", both),
            resource("pods", "PodMetrics", json!(["list"]))
        ]);
        keep(&mut kinds, "batch/v1beta1", list("batch/v1beta1", more));
        let found: Vec<_> = kinds
            .values()
            .map(|it| (&*it.api_version, &*it.plural))
            .collect();
        assert_eq!(found, [("batch/v1beta1", "cronjobs"), ("batch/v1", "jobs")]);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Who a pod is.

use culvert_api::workload::{PodUid, Workload};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};

/// The pod of an object, as metrics and identities name it.
pub fn workload(uid: PodUid, (namespace, name): (&str, &str), pod: &Pod) -> Workload {
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone());
    let (owner_kind, owner_name) = owner(&pod.metadata, name);
    Workload {
        uid,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        service_account: account
            .filter(|account| !account.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        owner_kind,
        owner_name,
    }
}

/// A ReplicaSet of a Deployment is named after it and the hash of the pod template.
fn owner(metadata: &ObjectMeta, name: &str) -> (String, String) {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let controller = owners.iter().find(|owner| owner.controller == Some(true));
    let Some(owner) = controller.or_else(|| owners.first()) else {
        return ("pod".to_owned(), name.to_owned());
    };
    let labels = metadata.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get("pod-template-hash"));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-'));
    match deployment {
        Some(deployment) => ("deployment".to_owned(), deployment.to_owned()),
        None => (owner.kind.to_lowercase(), owner.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_owner_is_the_deployment_behind_a_replica_set() {
        let owned = |kind: &str, name: &str| {
            let metadata: ObjectMeta = serde_json::from_value(json!({
                "labels": {"pod-template-hash": "6d4"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "o", "controller": true}],
            }))
            .unwrap_or_else(|e| panic!("{e}"));
            owner(&metadata, "pod")
        };
        assert_eq!(
            owned("ReplicaSet", "web-6d4"),
            ("deployment".into(), "web".into())
        );
        assert_eq!(
            owned("StatefulSet", "db"),
            ("statefulset".into(), "db".into())
        );
        assert_eq!(
            owner(&ObjectMeta::default(), "x"),
            ("pod".into(), "x".into())
        );
    }
}

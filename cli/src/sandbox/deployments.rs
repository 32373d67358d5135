// SPDX-License-Identifier: Apache-2.0
//! Deployments as the pods that they stand for.

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::layout::fnv1a;

/// The label by which Kubernetes tells the pods of one template.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// The letters of Kubernetes' generated names: none that makes a word or looks like another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// One template of a deployment.
#[derive(Debug)]
pub struct ReplicaSet<'a> {
    deployment: &'a Deployment,
    namespace: &'a str,
    name: &'a str,
    /// Says which template.
    pub hash: String,
    /// How many pods are wanted.
    pub replicas: usize,
}

/// How many pods of which template there are to be now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Of the wanted template.
    pub new: usize,
    /// Of earlier ones.
    pub old: usize,
}

// === impl ReplicaSet ===

impl<'a> ReplicaSet<'a> {
    /// The template of a deployment that is named and in a namespace, as all that are read.
    pub fn of(deployment: &'a Deployment) -> Option<Self> {
        let spec = &deployment.spec;
        let template = serde_json::to_vec(&spec.template).ok()?;
        Some(Self {
            deployment,
            namespace: deployment.metadata.namespace.as_deref()?,
            name: deployment.metadata.name.as_deref()?,
            hash: letters(fnv1a(&template), 10),
            replicas: usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0),
        })
    }

    /// The pod of this number. It has the same name each time.
    pub fn pod(&self, ordinal: usize) -> Pod {
        let template = &self.deployment.spec.template;
        let meta = template.metadata.clone().unwrap_or_default();
        let mut labels = meta.labels.unwrap_or_default();
        labels.insert(TEMPLATE_HASH.into(), self.hash.clone());
        Pod {
            metadata: ObjectMeta {
                name: Some(self.pod_name(ordinal)),
                namespace: Some(self.namespace.to_owned()),
                labels: Some(labels),
                annotations: meta.annotations,
                owner_references: Some(vec![self.owner()]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    }

    fn pod_name(&self, ordinal: usize) -> String {
        let seed = format!("{}/{}/{}/{ordinal}", self.namespace, self.name, self.hash);
        let suffix = letters(fnv1a(seed.as_bytes()), 5);
        // A pod's name is a host name too: 63 bytes at most.
        let name: String = self.name.chars().take(46).collect();
        format!("{name}-{}-{suffix}", self.hash)
    }

    fn owner(&self) -> OwnerReference {
        OwnerReference {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            name: self.name.to_owned(),
            uid: stable_uid(&format!("{}/{}", self.namespace, self.name)),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

/// One more pod than wanted at most, never fewer ready ones than wanted: Kubernetes' defaults for
/// fewer than four replicas.
pub fn rollout(replicas: usize, old: usize, new_ready: usize) -> Rollout {
    let old = old.min(replicas.saturating_sub(new_ready));
    Rollout {
        new: replicas.min(replicas + 1 - old),
        old,
    }
}

/// A uid that is the same each time, in the form of a UUID.
pub fn stable_uid(seed: &str) -> String {
    let (a, b) = (
        fnv1a(seed.as_bytes()),
        fnv1a(format!("{seed}\0").as_bytes()),
    );
    uuid((u128::from(a) << 64) | u128::from(b))
}

/// A uid that no other pod has, in the form of a UUID.
pub fn random_uid() -> String {
    uuid(rand::random())
}

/// Version 4, variant 1 (<https://www.rfc-editor.org/rfc/rfc9562#section-5.4>).
fn uuid(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let (a, b, c) = (&hex[..8], &hex[8..12], &hex[12..16]);
    format!("{a}-{b}-{c}-{}-{}", &hex[16..20], &hex[20..])
}

fn letters(mut number: u64, count: usize) -> String {
    let base = ALPHABET.len() as u64;
    let mut next = || {
        let letter = ALPHABET[(number % base) as usize];
        number = (number / base) ^ number.rotate_left(29);
        char::from(letter)
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn deployment(replicas: u32, command: &str) -> Deployment {
        let template = json!({
            "metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "command": [command]}]},
        });
        let selector = json!({"matchLabels": {"app": "web"}});
        let object = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"replicas": replicas, "selector": selector, "template": template},
        });
        serde_json::from_value(object).unwrap_or_else(|e| panic!("{e}"))
    }

    fn names(deployment: &Deployment) -> BTreeSet<String> {
        let Some(set) = ReplicaSet::of(deployment) else {
            panic!("a deployment without a template");
        };
        (0..set.replicas)
            .filter_map(|nth| set.pod(nth).metadata.name)
            .collect()
    }

    #[test]
    fn pods_keep_their_names_until_the_template_changes() {
        let three = names(&deployment(3, "a"));
        assert_eq!(three.len(), 3);
        assert_eq!(three, names(&deployment(3, "a")));
        assert!(names(&deployment(2, "a")).is_subset(&three));
        assert!(names(&deployment(3, "b")).is_disjoint(&three));
        assert!(
            three
                .iter()
                .all(|name| name.starts_with("web-") && name.len() == 20)
        );
    }

    #[test]
    fn pods_say_whose_they_are() {
        let deployment = deployment(1, "a");
        let Some(set) = ReplicaSet::of(&deployment) else {
            panic!("a deployment without a template");
        };
        let meta = set.pod(0).metadata;
        let owners = meta.owner_references.unwrap_or_default();
        assert_eq!(
            (owners[0].kind.as_str(), owners[0].name.as_str()),
            ("Deployment", "web")
        );
        let labels = meta.labels.unwrap_or_default();
        assert_eq!(labels.get(TEMPLATE_HASH), Some(&set.hash));
        assert_eq!(labels.get("app").map(String::as_str), Some("web"));
    }

    #[test]
    fn a_rollout_never_has_too_few_ready_pods() {
        let of = |new, old| Rollout { new, old };
        assert_eq!(rollout(2, 0, 0), of(2, 0));
        assert_eq!(rollout(2, 2, 0), of(1, 2));
        assert_eq!(rollout(2, 2, 1), of(2, 1));
        assert_eq!(rollout(2, 1, 2), of(2, 0));
        assert_eq!(rollout(0, 2, 0), of(0, 0));
        assert_eq!(rollout(1, 3, 0), of(1, 1));
    }

    #[test]
    fn uids_look_like_uuids() {
        let uid = random_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert_ne!(uid, random_uid());
        assert_eq!(stable_uid("a"), stable_uid("a"));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Pods as they were made, so that a change costs those that changed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1;

use super::view::Pod;

/// The pods of the last view, by where their objects are.
#[derive(Debug, Default)]
pub(super) struct Made {
    pods: HashMap<usize, One>,
}

#[derive(Debug)]
struct One {
    of: Of,
    pod: Arc<Pod>,
    refusals: BTreeSet<String>,
}

/// All that a pod is made of.
#[derive(Debug)]
pub(super) struct Of {
    pub(super) object: Arc<v1::Pod>,
    pub(super) namespace: Option<Arc<v1::Namespace>>,
    pub(super) zone: Option<String>,
    pub(super) meshed: bool,
}

// === impl Made ===

impl Made {
    pub(super) fn with_capacity(pods: usize) -> Self {
        Self {
            pods: HashMap::with_capacity(pods),
        }
    }

    /// The pod that was made of the same, or that `make` makes; what is neither asked for again is
    /// dropped with `self`.
    pub(super) fn pod(
        &mut self,
        next: &mut Self,
        of: Of,
        refusals: &mut BTreeSet<String>,
        make: impl FnOnce(&Of, &mut BTreeSet<String>) -> Arc<Pod>,
    ) -> Arc<Pod> {
        // The object is held, so that nothing else can be where it is.
        let place = Arc::as_ptr(&of.object).addr();
        let same = self.pods.remove(&place).filter(|one| one.of.is(&of));
        let one = same.unwrap_or_else(|| {
            let mut refusals = BTreeSet::new();
            One {
                pod: make(&of, &mut refusals),
                of,
                refusals,
            }
        });
        refusals.extend(one.refusals.iter().cloned());
        let pod = Arc::clone(&one.pod);
        next.pods.insert(place, one);
        pod
    }
}

// === impl Of ===

impl Of {
    /// Of the very same, not of what is equal: sources share what did not change.
    fn is(&self, other: &Self) -> bool {
        let namespaces = (self.namespace.as_ref(), other.namespace.as_ref());
        let same_namespace = match namespaces {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        Arc::ptr_eq(&self.object, &other.object)
            && same_namespace
            && self.meshed == other.meshed
            && self.zone == other.zone
    }
}

#[cfg(test)]
mod tests {
    use culvert_api::workload::PodUid;
    use culvert_manifests::Objects;

    use crate::{
        index::{Index, Pod, Reports},
        testing::{objects, pod},
    };

    use super::*;

    const NAMESPACE: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    const NODE: &str = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";

    fn two() -> Objects {
        let odd = pod("odd", "n1", &["10.0.0.2"]);
        let odd = odd.replace(
            "uid: uid-odd",
            "uid: uid-odd, annotations: {culvert.io/access-log: odd}",
        );
        let text = [NAMESPACE, NODE, &pod("web", "n1", &["10.0.0.1"]), &odd].concat();
        Objects::clone(&objects(&text))
    }

    fn of(index: &Index, name: &str) -> Arc<Pod> {
        let view = Arc::clone(&index.view().borrow());
        let pod = view.pod(&PodUid(format!("uid-{name}")));
        Arc::clone(pod.unwrap_or_else(|| panic!("no {name}")))
    }

    fn change<T: Clone>(shared: Option<&mut Arc<T>>, change: impl FnOnce(&mut T)) {
        change(Arc::make_mut(shared.unwrap_or_else(|| panic!("not there"))));
    }

    #[test]
    fn what_all_pods_are_made_of_reaches_those_that_did_not_change() {
        let mut objects = two();
        let mut index = Index::new(Reports::default());
        index.reset(Arc::new(objects.clone()));
        let first = of(&index, "web");
        assert!(first.policy.access_log.is_none() && first.peer.zone.is_none());
        change(objects.namespaces.get_mut("shop"), |namespace| {
            let annotations = [("culvert.io/access-log".into(), "json".into())];
            namespace.metadata.annotations = Some(annotations.into());
        });
        index.reset(Arc::new(objects.clone()));
        assert!(of(&index, "web").policy.access_log.is_some());
        change(objects.nodes.get_mut("n1"), |node| {
            let labels = [("topology.kubernetes.io/zone".into(), "east".into())];
            node.metadata.labels = Some(labels.into());
        });
        index.reset(Arc::new(objects));
        assert_eq!(of(&index, "web").peer.zone.as_deref(), Some("east"));
    }

    #[test]
    fn what_is_refused_stays_refused_and_what_is_gone_is_forgotten() {
        let mut objects = two();
        let mut index = Index::new(Reports::default());
        index.reset(Arc::new(objects.clone()));
        let refused = index.view().borrow().refusals.clone();
        assert_eq!(refused.len(), 1, "{refused:?}");
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        change(objects.pods.get_mut(&key("web")), |pod| {
            pod.metadata.deletion_timestamp = None;
            pod.metadata.labels = None;
        });
        index.reset(Arc::new(objects.clone()));
        assert_eq!(index.view().borrow().refusals, refused);
        objects.pods.remove(&key("odd"));
        index.reset(Arc::new(objects));
        assert!(index.view().borrow().refusals.is_empty());
        assert_eq!(index.made.pods.len(), 1);
    }
}

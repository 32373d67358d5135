// SPDX-License-Identifier: Apache-2.0
//! The kinds that are watched, and what is kept of each.

mod slim;

use std::{collections::BTreeMap, sync::Arc};

use culvert_manifests::{NamespacedName, Objects};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::de::DeserializeOwned;

use crate::source::Scope;

/// A kind of objects that is watched.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + DeserializeOwned + PartialEq + Send + Sync + 'static
{
    /// What its objects are known by.
    type Key: Key;

    /// Its name.
    const KIND: &'static str;

    /// Where its objects are.
    fn of(objects: &mut Objects) -> &mut BTreeMap<Self::Key, Arc<Self>>;

    /// Drops what nobody in a scope reads, the metadata's aside.
    fn slim(&mut self, scope: &Scope);
}

/// What objects of a kind are known by.
pub(crate) trait Key: Ord + Clone + Send + 'static {
    /// Of an object that has it, as all that an API server admitted have.
    fn of(metadata: &ObjectMeta) -> Option<Self>;

    /// For people.
    fn words(&self) -> String;
}

/// An object without what nobody reads, so that a change of that alone is none. Its
/// `resourceVersion` stays.
pub(crate) fn slim<K: Watched>(mut object: K, scope: &Scope) -> K {
    slim::metadata(object.meta_mut());
    object.slim(scope);
    object
}

/// Whether two objects say the same, in whatever version.
pub(crate) fn is_same<K: Watched>(old: &K, new: &mut K) -> bool {
    let version = new.meta_mut().resource_version.take();
    new.meta_mut().resource_version = old.meta().resource_version.clone();
    let same = *old == *new;
    new.meta_mut().resource_version = version;
    same
}

// === impl Key ===

impl Key for String {
    fn of(metadata: &ObjectMeta) -> Option<Self> {
        metadata.name.clone().filter(|name| !name.is_empty())
    }

    fn words(&self) -> String {
        self.clone()
    }
}

impl Key for NamespacedName {
    fn of(metadata: &ObjectMeta) -> Option<Self> {
        let namespace = metadata.namespace.clone().filter(|it| !it.is_empty())?;
        Some((namespace, <String as Key>::of(metadata)?))
    }

    fn words(&self) -> String {
        format!("{}/{}", self.0, self.1)
    }
}

// === impl Watched ===

impl Watched for Namespace {
    type Key = String;
    const KIND: &'static str = "Namespace";

    fn of(objects: &mut Objects) -> &mut BTreeMap<Self::Key, Arc<Self>> {
        &mut objects.namespaces
    }

    fn slim(&mut self, _: &Scope) {
        self.spec = None;
        self.status = None;
    }
}

impl Watched for Node {
    type Key = String;
    const KIND: &'static str = "Node";

    fn of(objects: &mut Objects) -> &mut BTreeMap<Self::Key, Arc<Self>> {
        &mut objects.nodes
    }

    fn slim(&mut self, _: &Scope) {
        self.spec = self.spec.take().map(slim::node_spec);
        self.status = self.status.take().map(slim::node_status);
    }
}

impl Watched for Pod {
    type Key = NamespacedName;
    const KIND: &'static str = "Pod";

    fn of(objects: &mut Objects) -> &mut BTreeMap<Self::Key, Arc<Self>> {
        &mut objects.pods
    }

    fn slim(&mut self, scope: &Scope) {
        let gates = slim::gates(self.spec.as_ref());
        let spec = self.spec.take();
        self.spec = spec.map(|spec| slim::pod_spec(spec, scope));
        let status = self.status.take();
        self.status = status.map(|status| slim::pod_status(status, &gates));
    }
}

impl Watched for Service {
    type Key = NamespacedName;
    const KIND: &'static str = "Service";

    fn of(objects: &mut Objects) -> &mut BTreeMap<Self::Key, Arc<Self>> {
        &mut objects.services
    }

    fn slim(&mut self, _: &Scope) {
        if let Some(status) = &mut self.status {
            status.conditions = None;
        }
    }
}

impl Watched for ServiceAccount {
    type Key = NamespacedName;
    const KIND: &'static str = "ServiceAccount";

    fn of(objects: &mut Objects) -> &mut BTreeMap<Self::Key, Arc<Self>> {
        &mut objects.service_accounts
    }

    fn slim(&mut self, _: &Scope) {
        self.secrets = None;
        self.image_pull_secrets = None;
    }
}

impl Watched for EndpointSlice {
    type Key = NamespacedName;
    const KIND: &'static str = "EndpointSlice";

    fn of(objects: &mut Objects) -> &mut BTreeMap<Self::Key, Arc<Self>> {
        objects.endpoint_slices.get_or_insert_default()
    }

    fn slim(&mut self, _: &Scope) {
        let endpoints = self.endpoints.iter_mut().flatten();
        endpoints.for_each(slim::endpoint);
    }
}

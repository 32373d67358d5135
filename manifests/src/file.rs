// SPDX-License-Identifier: Apache-2.0
//! The objects of one file.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::{
    Metadata, Resource,
    api::{
        apps::v1::Deployment,
        core::v1::{self, Namespace, Pod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;

use crate::{
    DEFAULT_NAMESPACE, Objects,
    names::Rule,
    tree::{self, Fault, Node, Value},
};

/// The objects of a file, by what they are, with their lines.
pub(crate) type Contents = BTreeMap<Key, (u64, Object)>;

/// What makes an object the same as another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    kind: &'static str,
    namespace: Option<String>,
    name: String,
}

/// An object of a kind that Culvert knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<v1::Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    ServiceAccount(Arc<ServiceAccount>),
    Deployment(Arc<Deployment>),
    EndpointSlice(Arc<EndpointSlice>),
}

/// Reads all the objects of a text, or says what is wrong with the first that is.
pub(crate) fn parse(text: &str) -> Result<Contents, Fault> {
    let mut contents = Contents::new();
    for document in tree::parse(text)? {
        for node in items(&document)? {
            insert(&mut contents, node)?;
        }
    }
    Ok(contents)
}

fn insert(contents: &mut Contents, node: &Node) -> Result<(), Fault> {
    let line = tree::line(node);
    let (key, object) = object(node).map_err(|fault| Fault {
        line: fault.line.or(Some(line)),
        ..fault
    })?;
    if let Some((first, _)) = contents.get(&key) {
        return Err(at(
            node,
            format!("{key} is already defined on line {first} of this file"),
        ));
    }
    contents.insert(key, (line, object));
    Ok(())
}

/// The objects of a `List` as kubectl prints it, else the document itself.
fn items(document: &Node) -> Result<Vec<&Node>, Fault> {
    if tree::text(document, "kind") != Some("List") {
        return Ok(vec![document]);
    }
    match tree::field(document, "items").map(|items| &items.value) {
        Some(Value::Seq(items)) => Ok(items.iter().collect()),
        _ => Err(at(document, "a List without items".to_owned())),
    }
}

fn object(node: &Node) -> Result<(Key, Object), Fault> {
    let (version, kind) = (text(node, "apiVersion")?, text(node, "kind")?);
    match (version, kind) {
        ("v1", "Namespace") => cluster_scoped(node, Rule::Label, Object::Namespace),
        ("v1", "Node") => cluster_scoped(node, Rule::Subdomain, Object::Node),
        ("v1", "Pod") => namespaced(node, Rule::Subdomain, Object::Pod),
        ("v1", "Service") => namespaced(node, Rule::Label, Object::Service),
        ("v1", "ServiceAccount") => namespaced(node, Rule::Subdomain, Object::ServiceAccount),
        ("apps/v1", "Deployment") => namespaced(node, Rule::Subdomain, Object::Deployment),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            namespaced(node, Rule::Subdomain, Object::EndpointSlice)
        }
        _ => Err(at(
            node,
            format!(
                "got kind {kind:?} of apiVersion {version:?}, expected Namespace, Node, Pod, Service or \
                 ServiceAccount of v1, Deployment of apps/v1, or EndpointSlice of \
                 discovery.k8s.io/v1"
            ),
        )),
    }
}

fn text<'a>(node: &'a Node, key: &str) -> Result<&'a str, Fault> {
    tree::text(node, key).ok_or_else(|| at(node, format!("an object needs a string {key}")))
}

fn at(node: &Node, message: String) -> Fault {
    Fault {
        line: Some(tree::line(node)),
        path: String::new(),
        message,
    }
}

fn cluster_scoped<T>(
    node: &Node,
    rule: Rule,
    wrap: fn(Arc<T>) -> Object,
) -> Result<(Key, Object), Fault>
where
    T: DeserializeOwned + Resource + Metadata<Ty = ObjectMeta>,
{
    let object: T = tree::read(node)?;
    let name = name(node, object.metadata(), rule)?;
    if object.metadata().namespace.is_some() {
        return Err(metadata(
            node,
            "namespace",
            format!("a {} has no namespace", T::KIND),
        ));
    }
    let key = Key {
        kind: T::KIND,
        namespace: None,
        name,
    };
    Ok((key, wrap(Arc::new(object))))
}

fn namespaced<T>(
    node: &Node,
    rule: Rule,
    wrap: fn(Arc<T>) -> Object,
) -> Result<(Key, Object), Fault>
where
    T: DeserializeOwned + Resource + Metadata<Ty = ObjectMeta>,
{
    let mut object: T = tree::read(node)?;
    let name = name(node, object.metadata(), rule)?;
    let namespace = object.metadata_mut().namespace.take();
    let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    check(node, "namespace", &namespace, Rule::Label)?;
    object.metadata_mut().namespace = Some(namespace.clone());
    let key = Key {
        kind: T::KIND,
        namespace: Some(namespace),
        name,
    };
    Ok((key, wrap(Arc::new(object))))
}

fn name(node: &Node, meta: &ObjectMeta, rule: Rule) -> Result<String, Fault> {
    let name = meta.name.clone().ok_or_else(|| {
        let message = "an object needs a metadata.name; generateName is for API servers";
        at(
            tree::field(node, "metadata").unwrap_or(node),
            message.to_owned(),
        )
    })?;
    check(node, "name", &name, rule)?;
    Ok(name)
}

fn check(node: &Node, field: &str, value: &str, rule: Rule) -> Result<(), Fault> {
    if rule.allows(value) {
        return Ok(());
    }
    let message = format!("got {value:?}, expected {}", rule.words());
    Err(metadata(node, field, message))
}

fn metadata(node: &Node, field: &str, message: String) -> Fault {
    let node = tree::field(node, "metadata")
        .and_then(|metadata| tree::field(metadata, field))
        .unwrap_or(node);
    Fault {
        path: format!("metadata.{field}"),
        ..at(node, message)
    }
}

// === impl Key ===

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

// === impl Objects ===

impl Objects {
    pub(crate) fn insert(&mut self, key: &Key, object: &Object) {
        let name = key.name.clone();
        let namespace = key.namespace.clone().unwrap_or_default();
        match object.clone() {
            Object::Namespace(object) => drop(self.namespaces.insert(name, object)),
            Object::Node(object) => drop(self.nodes.insert(name, object)),
            Object::Pod(object) => drop(self.pods.insert((namespace, name), object)),
            Object::Service(object) => drop(self.services.insert((namespace, name), object)),
            Object::ServiceAccount(object) => {
                drop(self.service_accounts.insert((namespace, name), object));
            }
            Object::Deployment(object) => {
                drop(self.deployments.insert((namespace, name), object));
            }
            Object::EndpointSlice(object) => {
                let slices = self.endpoint_slices.get_or_insert_default();
                slices.insert((namespace, name), object);
            }
        }
    }
}

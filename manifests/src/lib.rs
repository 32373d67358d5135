// SPDX-License-Identifier: Apache-2.0
//! A directory of Kubernetes manifests as a source of objects.
//!
//! [`load`] reads `*.yaml`, `*.yml` and `*.json` of one directory once; [`Source`] goes on watching
//! it. Nothing that a user writes is ignored in silence: a file with a kind, a field or a name that
//! is not known, or with an object that another file has already, is refused as a whole as a
//! [`Problem`], and what the file last said while it was good stays.
//!
//! [`Objects`] is also what other sources of objects give.

mod file;
mod names;
mod source;
mod store;
mod tree;

use std::{collections::BTreeMap, fmt, io, path::Path, path::PathBuf, sync::Arc};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};

pub use self::source::Source;

/// The namespace of an object whose `metadata.namespace` is absent.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The namespace and the name of an object.
pub type NamespacedName = (String, String);

/// The objects of a source. The namespace of a key is also in the object's metadata. What did not
/// change is shared with the objects before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// By name.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// By name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// By namespace and name.
    pub pods: BTreeMap<NamespacedName, Arc<Pod>>,
    /// By namespace and name.
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// By namespace and name.
    pub service_accounts: BTreeMap<NamespacedName, Arc<ServiceAccount>>,
    /// By namespace and name.
    pub deployments: BTreeMap<NamespacedName, Arc<Deployment>>,
    /// By namespace and name. None: nobody makes slices, as in a directory that has none; the
    /// endpoints of a Service are then the pods that it selects.
    pub endpoint_slices: Option<BTreeMap<NamespacedName, Arc<EndpointSlice>>>,
}

/// Why a file, or the directory itself, is refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, as the directory's path with the file's name.
    pub file: PathBuf,
    /// The line, from 1; none where the whole file is meant.
    pub line: Option<u64>,
    /// What was got, what was expected and what to do, in a sentence.
    pub reason: String,
}

/// Reads a directory once. The objects are those of the files that have no problem.
///
/// Fails only when the directory itself can't be read; a file that can't be is a [`Problem`].
/// Blocks on the file system.
pub fn load(dir: impl AsRef<Path>) -> io::Result<(Objects, Vec<Problem>)> {
    let mut store = store::Store::new(dir.as_ref());
    store.scan(store::Freshness::Any)?;
    Ok((store.objects(), store.problems()))
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

#[cfg(test)]
mod tests;

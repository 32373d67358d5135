// SPDX-License-Identifier: Apache-2.0
//! The Helm chart of `daemonset/chart`, embedded, and rendered as Helm renders it.

pub mod schema;
pub mod template;
pub mod values;
pub mod yaml;

use serde_json::{Value, json};

use self::template::{Fault, Templates};

/// The release that this program installs.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The oldest Kubernetes that the chart is made for, where nobody says which it is.
pub const KUBERNETES: &str = "v1.28.0";

/// Who installs, as `.Release.Service` in the chart; Helm says "Helm".
const SERVICE: &str = "culvert";

macro_rules! file {
    ($path:literal) => {
        (
            $path,
            include_str!(concat!("../../daemonset/chart/", $path)),
        )
    };
}

const VALUES: &str = file!("values.yaml").1;
const VALUES_HA: &str = file!("values-ha.yaml").1;
const SCHEMA: &str = file!("values.schema.json").1;

const TEMPLATES: &[(&str, &str)] = &[
    file!("templates/_helpers.tpl"),
    file!("templates/admission.yaml"),
    file!("templates/agent-rbac.yaml"),
    file!("templates/agent.yaml"),
    file!("templates/control-rbac.yaml"),
    file!("templates/control.yaml"),
    file!("templates/identity.yaml"),
    file!("templates/namespace.yaml"),
    file!("templates/openshift.yaml"),
    file!("templates/proxy-rbac.yaml"),
    file!("templates/proxy.yaml"),
    file!("templates/quota.yaml"),
];

/// In which order objects are made, so that none waits for another. Helm's, as far as our kinds go.
const ORDER: &[&str] = &[
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ResourceQuota",
    "PodDisruptionBudget",
    "SecurityContextConstraints",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Deployment",
];

/// Where and onto what the chart is installed.
#[derive(Clone, Debug)]
pub struct Release {
    /// The namespace of control.
    pub namespace: String,
    /// The version of Kubernetes, e.g. v1.30.2.
    pub kubernetes: String,
}

/// An object, as it was written.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its YAML, with comments, without `---`.
    pub text: String,
    /// What it says.
    pub object: Value,
}

/// The chart can't be rendered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Values are not what the chart expects.
    #[error("{}", .0.join("\n  "))]
    Values(Vec<String>),
    /// A template refuses.
    #[error("daemonset/chart/{0}")]
    Template(#[from] Fault),
    /// What a template gave is no object. Our fault.
    #[error("daemonset/chart/{file}: {message}")]
    Object {
        /// The template.
        file: String,
        /// What is wrong with what it gave.
        message: String,
    },
}

/// The values of the chart.
pub fn defaults() -> Value {
    embedded(VALUES)
}

/// The values of `--ha`.
pub fn high_availability() -> Value {
    embedded(VALUES_HA)
}

/// The schema of the values.
pub fn schema() -> Value {
    embedded(SCHEMA)
}

/// What tests hold to be YAML. If it is not, the schema will say what is missing.
fn embedded(text: &str) -> Value {
    yaml::read(text).unwrap_or_default()
}

/// Renders the chart with all its values, in the order in which objects are to be made.
pub fn render(values: &Value, release: &Release) -> Result<Vec<Manifest>, Error> {
    let mistakes = schema::mistakes(values, &schema());
    if !mistakes.is_empty() {
        return Err(Error::Values(mistakes));
    }
    let templates = Templates::parse(TEMPLATES.iter().copied())?;
    let data = data(values, release);
    let mut manifests = Vec::new();
    for file in templates.files().filter(|file| file.ends_with(".yaml")) {
        manifests.extend(objects(file, &templates.render(file, &data)?)?);
    }
    manifests.sort_by_key(Manifest::rank);
    Ok(manifests)
}

fn data(values: &Value, release: &Release) -> Value {
    json!({
        "Values": values,
        "Chart": {"Name": "culvert", "Version": VERSION, "AppVersion": VERSION},
        "Release": {"Name": "culvert", "Namespace": release.namespace, "Service": SERVICE},
        "Capabilities": {"KubeVersion": {"Version": release.kubernetes}},
    })
}

fn objects(file: &str, rendered: &str) -> Result<Vec<Manifest>, Error> {
    let documents = rendered.split("\n---\n").map(str::trim);
    let read = |text: &str| {
        let read = yaml::read_all(text).map_err(|message| Error::Object {
            file: file.to_owned(),
            message,
        })?;
        Ok(read
            .into_iter()
            .find(Value::is_object)
            .map(|object| Manifest {
                text: format!("# Source: culvert/{file}\n{text}\n"),
                object,
            }))
    };
    documents
        .filter_map(|text| read(text).transpose())
        .collect()
}

// === impl Manifest ===

impl Manifest {
    /// An object that is made here.
    pub fn of(object: Value) -> Self {
        Self {
            text: format!("{}\n", yaml::write(&object)),
            object,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    /// Its place among the others when it is made.
    pub fn rank(&self) -> usize {
        let place = ORDER.iter().position(|kind| *kind == self.kind());
        place.unwrap_or(ORDER.len())
    }
}

/// As one text for `kubectl apply -f -`.
pub fn print(manifests: &[Manifest]) -> String {
    manifests
        .iter()
        .map(|manifest| format!("---\n{}", manifest.text))
        .collect()
}

#[cfg(test)]
mod hints;
#[cfg(test)]
mod tests;

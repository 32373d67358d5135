// SPDX-License-Identifier: Apache-2.0
//! The network configuration that the runtime writes to stdin.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use cni_plugin::config::NetworkConfig;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use crate::error::Error;

/// The newest version of the specification that is spoken.
pub const NEWEST: &str = "1.1.0";
/// Every version that is spoken.
pub use culvert_api::cni::CNI_VERSIONS as SUPPORTED;

/// What libcni sends with GC; the second name was in the specification by mistake
/// (<https://github.com/containernetworking/cni/issues/1101>).
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// A network configuration.
#[derive(Debug)]
pub struct Config {
    /// The network's `name`.
    pub network: String,
    /// What the plugin before us answered: byte for byte what is returned.
    pub prev_result: Option<Box<RawValue>>,
    /// Our own fields.
    pub settings: Settings,
    /// What GC shall keep; absent for the other commands.
    pub valid_attachments: Option<Vec<GcAttachment>>,
    /// A field that is nobody's.
    unknown: Option<String>,
}

/// The fields of the conflist entry that are ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `agentSocket`: where the agent listens.
    pub agent_socket: PathBuf,
    /// `optInFile`: where the agent keeps which pods are unmeshed.
    pub opt_in_file: Option<PathBuf>,
    /// `neverMesh`: namespaces whose pods pass while the agent is away.
    pub never_mesh: Vec<String>,
}

/// An attachment that GC shall keep, in libcni's spelling.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct GcAttachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
}

type Specific = HashMap<String, Value>;

/// Top-level fields whose values are still JSON text.
pub type Fields = BTreeMap<String, Box<RawValue>>;

/// Splits stdin into fields, so that the version is known before anything is refused.
pub fn fields(stdin: &[u8]) -> Result<Fields, Error> {
    serde_json::from_slice(stdin).map_err(Error::Decode)
}

/// The configuration's `cniVersion`, if it is a string.
pub fn version(fields: &Fields) -> Option<String> {
    let version = fields.get("cniVersion")?;
    serde_json::from_str(version.get()).ok()
}

/// Reads a configuration.
pub fn parse(mut fields: Fields) -> Result<Config, Error> {
    let prev_result = fields
        .remove("prevResult")
        .filter(|raw| raw.get() != "null");
    // Runtimes and people write `"ipam": {}`, which `cni-plugin` does not take.
    fields.remove("ipam");
    let network = network(&fields)?;
    let ip_masq = network.ip_masq.then(|| "ipMasq".to_owned());
    let (name, mut ours) = (network.name, network.specific);
    let valid_attachments = valid_attachments(&mut ours)?;
    ours.retain(|name, _| name != "capabilities" && !name.starts_with("cni.dev/"));
    let settings = Settings {
        agent_socket: absolute("agentSocket", take(&mut ours, "agentSocket")?)?
            .ok_or_else(|| Error::config("agentSocket", "is missing; expected a path"))?,
        opt_in_file: absolute("optInFile", take(&mut ours, "optInFile")?)?,
        never_mesh: take(&mut ours, "neverMesh")?.unwrap_or_default(),
    };
    Ok(Config {
        network: name,
        prev_result,
        settings,
        valid_attachments,
        unknown: ours.into_keys().min().or(ip_masq),
    })
}

// === impl Config ===

impl Config {
    /// Refuses a field that would be ignored otherwise.
    pub fn refuse_unknown(&self) -> Result<(), Error> {
        match &self.unknown {
            Some(name) => Err(unknown(name)),
            None => Ok(()),
        }
    }
}

fn network(fields: &Fields) -> Result<NetworkConfig, Error> {
    let text = serde_json::to_vec(fields).map_err(Error::Decode)?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::config(
            "a standard field",
            format!("{error} (its position is without prevResult)"),
        )
    })
}

fn unknown(name: &str) -> Error {
    let problem = format!(
        "{name} is not a field of culvert-cni, and nothing is ignored in silence; remove it \
         (known: agentSocket, optInFile, neverMesh)"
    );
    Error::config(name, problem)
}

fn valid_attachments(fields: &mut Specific) -> Result<Option<Vec<GcAttachment>>, Error> {
    let [name, old_name] = VALID_ATTACHMENTS;
    // libcni in Go writes `null` for an empty list.
    let list = |value: Value| match value {
        Value::Null => Ok(Vec::new()),
        value => serde_json::from_value(value).map_err(|e| Error::config(name, e.to_string())),
    };
    let old = fields.remove(old_name);
    fields.remove(name).or(old).map(list).transpose()
}

fn take<T: DeserializeOwned>(fields: &mut Specific, name: &str) -> Result<Option<T>, Error> {
    let parse = |value| serde_json::from_value(value);
    fields
        .remove(name)
        .map(parse)
        .transpose()
        .map_err(|error| Error::config(name, error.to_string()))
}

fn absolute(name: &str, path: Option<PathBuf>) -> Result<Option<PathBuf>, Error> {
    match path {
        Some(path) if !path.is_absolute() => {
            let problem = format!("got {}, expected an absolute path", path.display());
            Err(Error::config(name, problem))
        }
        path => Ok(path),
    }
}

#[cfg(test)]
mod tests;

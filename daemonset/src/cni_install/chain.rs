// SPDX-License-Identifier: Apache-2.0
//! From the primary's configuration to ours: the same network, with `culvert-cni` last. Pure.
//!
//! Values that are not ours are copied byte for byte. See
//! <https://www.cni.dev/docs/spec/#section-1-network-configuration-format>.

use std::fmt::Write as _;

use culvert_api::cni::CNI_VERSIONS;
use serde::{Deserialize, Serialize};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::list::{Broken, List, Plugin};

/// The type of our plugin.
pub const OURS: &str = "culvert-cni";

/// The field that says where a configuration of ours comes from. Whoever copies ours copies it too.
const ORIGIN: &str = "culvert.io/chain";

/// What a version older than chaining becomes.
const OLDEST: &str = "0.3.1";

/// A configuration of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chained {
    /// The text of the conflist.
    pub text: String,
    /// What had to become of `cniVersion`.
    pub version: Option<Changed>,
}

/// A `cniVersion` that could not stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// As the primary says.
    pub got: String,
    /// As ours says.
    pub to: &'static str,
}

/// Where a configuration of ours comes from.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    /// The primary's file.
    primary: String,
    /// The types of its plugins.
    plugins: Vec<String>,
    /// The types of those that were found in copies of ours.
    #[serde(default)]
    found: Vec<String>,
}

/// The chain of `primary`, which was read from the file `name`.
///
/// - `found`: plugins that other meshes chain in copies of ours, which the runtime does not read
///   because ours comes first.
/// - `kept`: plugins that others put into ours.
/// - `settings`: our plugin's fields.
pub fn chain(
    name: &str,
    primary: &List,
    found: Vec<Plugin>,
    kept: Vec<Plugin>,
    settings: &Value,
) -> Result<Chained, Broken> {
    if let Some(plugin) = primary.plugins.iter().find(|plugin| plugin.nests(OURS)) {
        return Err(Broken::Nested {
            plugin: plugin.kind.clone(),
        });
    }
    let mut plugins: Vec<_> = primary
        .plugins
        .iter()
        .filter(|p| !is_ours(p))
        .cloned()
        .collect();
    let origin = Origin {
        primary: name.to_owned(),
        plugins: kinds(&plugins),
        found: kinds(&found),
    };
    add(&mut plugins, found);
    add(&mut plugins, kept);
    let ours = to_raw_value(settings).map_err(Broken::Json)?;
    let mut all: Vec<_> = plugins.iter().map(|plugin| &*plugin.raw).collect();
    all.push(&ours);
    let (version, changed) = version(primary)?;
    Ok(Chained {
        text: text(primary, version.as_deref(), &all, &origin)?,
        version: changed,
    })
}

/// What others put into ours; nothing, if it is not ours any more.
pub fn added(ours: &List) -> Vec<Plugin> {
    let Some(origin) = origin(ours) else {
        return Vec::new();
    };
    let known = [origin.plugins, origin.found].concat();
    without(ours, &known)
}

/// What others chain in a copy of ours; none, if it is no copy of ours.
pub fn found(copy: &List) -> Option<Vec<Plugin>> {
    Some(without(copy, &origin(copy)?.plugins))
}

fn origin(list: &List) -> Option<Origin> {
    serde_json::from_str(list.field(ORIGIN)?.get()).ok()
}

/// The plugins of a list but ours and those of these types.
fn without(list: &List, known: &[String]) -> Vec<Plugin> {
    let is_other = |p: &&Plugin| !is_ours(p) && !known.contains(&p.kind);
    list.plugins.iter().filter(is_other).cloned().collect()
}

fn kinds(plugins: &[Plugin]) -> Vec<String> {
    plugins.iter().map(|plugin| plugin.kind.clone()).collect()
}

/// Whether two texts say the same, whoever formatted them.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    let value = |text| serde_json::from_slice::<Value>(text).ok();
    one == other || value(one).is_some_and(|one| value(other) == Some(one))
}

fn is_ours(plugin: &Plugin) -> bool {
    plugin.kind == OURS
}

/// Each type once.
fn add(plugins: &mut Vec<Plugin>, more: Vec<Plugin>) {
    for plugin in more {
        if !plugins.iter().any(|known| known.kind == plugin.kind) {
            plugins.push(plugin);
        }
    }
}

/// None: it stays as it is.
fn version(primary: &List) -> Result<(Option<String>, Option<Changed>), Broken> {
    let got = primary.version()?;
    if CNI_VERSIONS.contains(&got.as_str()) {
        return Ok((None, None));
    }
    let number = number(&got).ok_or_else(|| Broken::Version { got: got.clone() })?;
    let spoken = CNI_VERSIONS.iter().rev();
    let mut older = spoken.filter(|spoken| self::number(spoken).is_some_and(|n| n <= number));
    let to = older.next().unwrap_or(&OLDEST);
    let raw = Value::from(*to).to_string();
    Ok((Some(raw), Some(Changed { got, to })))
}

/// Empty is what libcni takes for 0.1.0.
fn number(version: &str) -> Option<[u32; 3]> {
    if version.is_empty() {
        return Some([0, 1, 0]);
    }
    let parts: Result<Vec<u32>, _> = version.split('.').map(str::parse).collect();
    parts.ok()?.try_into().ok()
}

fn text(
    primary: &List,
    version: Option<&str>,
    plugins: &[&RawValue],
    origin: &Origin,
) -> Result<String, Broken> {
    let mut fields = Vec::new();
    if let (Some(version), None) = (version, primary.field("cniVersion")) {
        fields.push(("cniVersion", version.to_owned()));
    }
    for (name, raw) in primary.others().filter(|(name, _)| *name != ORIGIN) {
        let changed = version.filter(|_| name == "cniVersion");
        fields.push((name, changed.unwrap_or(raw.get()).to_owned()));
    }
    fields.push(("plugins", array(plugins)));
    fields.push((ORIGIN, serde_json::to_string(origin).map_err(Broken::Json)?));
    let line = |(name, raw): &(&str, String)| format!("  {}: {raw}", Value::from(*name));
    let lines: Vec<_> = fields.iter().map(line).collect();
    Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
}

fn array(plugins: &[&RawValue]) -> String {
    let mut text = "[".to_owned();
    for (nth, plugin) in plugins.iter().enumerate() {
        let comma = if nth == 0 { "" } else { "," };
        // Writing to a String does not fail.
        let _ = write!(text, "{comma}\n    {}", plugin.get());
    }
    text + "\n  ]"
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: Apache-2.0
//! A network configuration as libcni reads it, with every value as it was written.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

/// A list of plugins.
#[derive(Clone, Debug)]
pub struct List {
    fields: Fields,
    /// In the order of the file.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a list.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// Its `type`: the name of its binary.
    pub kind: String,
    /// Its object.
    pub raw: Box<RawValue>,
}

/// Why a file is no network configuration that can be chained after.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Half written, or a mistake.
    #[error("it is no JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that says two things.
    #[error("it has the field {field:?} twice")]
    Twice {
        /// Its name.
        field: String,
    },
    /// Required.
    #[error("it has no name; a network needs one")]
    NoName,
    /// Neither a plugin nor a list of them.
    #[error("{field} is not what the specification says: {problem}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What was expected.
        problem: &'static str,
    },
    /// libcni goes by the file's name.
    #[error("it has a list of plugins, so its name must end in .conflist")]
    ListInConf,
    /// Not like 1.0.0.
    #[error("cniVersion is {got:?}, expected one like \"1.0.0\"")]
    Version {
        /// As written.
        got: String,
    },
    /// A meta plugin delegates to a copy of ours.
    #[error(
        "its plugin {plugin} delegates to a copy of Culvert's own configuration: name the \
         network's file to it (Multus: --multus-master-cni-file-name)"
    )]
    Nested {
        /// Its type.
        plugin: String,
    },
}

/// The members of an object, in their order.
#[derive(Clone, Debug)]
struct Fields(Vec<(String, Box<RawValue>)>);

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "type")]
    kind: String,
}

// === impl List ===

impl List {
    /// Reads a file by its name, as libcni does: a `.conflist` is a list, others are one plugin.
    pub fn read(name: &str, text: &[u8]) -> Result<Self, Broken> {
        let fields: Fields = serde_json::from_slice(text)?;
        fields.each_once()?;
        let list = match name.ends_with(".conflist") {
            true => Self {
                plugins: plugins(&fields)?,
                fields,
            },
            false => Self::of_one(&fields, text)?,
        };
        match list.string("name") {
            Some(name) if !name.is_empty() => Ok(list),
            _ => Err(Broken::NoName),
        }
    }

    /// As libcni wraps one plugin into a list.
    fn of_one(fields: &Fields, text: &[u8]) -> Result<Self, Broken> {
        if fields.get("plugins").is_some() {
            return Err(Broken::ListInConf);
        }
        let raw: Box<RawValue> = serde_json::from_slice(text)?;
        let common = fields.0.iter();
        let common = common.filter(|(name, _)| matches!(name.as_str(), "cniVersion" | "name"));
        Ok(Self {
            plugins: vec![Plugin::new(raw)?],
            fields: Fields(common.cloned().collect()),
        })
    }

    /// A field of the list.
    pub fn field(&self, name: &str) -> Option<&RawValue> {
        self.fields.get(name)
    }

    /// The fields of the list but `plugins`.
    pub fn others(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        let all = self.fields.0.iter();
        all.map(|(name, raw)| (name.as_str(), &**raw))
            .filter(|(name, _)| *name != "plugins")
    }

    /// `cniVersion`, empty if there is none.
    pub fn version(&self) -> Result<String, Broken> {
        let Some(raw) = self.field("cniVersion") else {
            return Ok(String::new());
        };
        let not_text = |_| Broken::Version {
            got: raw.get().to_owned(),
        };
        serde_json::from_str(raw.get()).map_err(not_text)
    }

    fn string(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.field(name)?.get()).ok()
    }
}

// === impl Plugin ===

impl Plugin {
    fn new(raw: Box<RawValue>) -> Result<Self, Broken> {
        match serde_json::from_str(raw.get()) {
            Ok(Head { kind }) if !kind.is_empty() => Ok(Self { kind, raw }),
            _ => Err(Broken::Field {
                field: "type",
                problem: "every plugin needs one, the name of its binary",
            }),
        }
    }

    /// Whether its own configuration holds one of a plugin of this type.
    pub fn nests(&self, kind: &str) -> bool {
        self.kind != kind
            && self.raw.get().contains(kind)
            && serde_json::from_str(self.raw.get()).is_ok_and(|value: Value| holds(&value, kind))
    }
}

fn holds(value: &Value, kind: &str) -> bool {
    match value {
        Value::Object(fields) => {
            fields.get("type").and_then(Value::as_str) == Some(kind)
                || fields.values().any(|value| holds(value, kind))
        }
        Value::Array(values) => values.iter().any(|value| holds(value, kind)),
        _ => false,
    }
}

fn plugins(fields: &Fields) -> Result<Vec<Plugin>, Broken> {
    let raw = fields.get("plugins");
    let all = raw.and_then(|raw| serde_json::from_str::<Vec<Box<RawValue>>>(raw.get()).ok());
    let all = all.ok_or(Broken::Field {
        field: "plugins",
        problem: "a .conflist needs an array of them",
    })?;
    all.into_iter().map(Plugin::new).collect()
}

// === impl Fields ===

impl Fields {
    fn get(&self, name: &str) -> Option<&RawValue> {
        let mut found = self.0.iter().filter(|(field, _)| field == name);
        found.next().map(|(_, raw)| &**raw)
    }

    /// Readers differ in which one counts.
    fn each_once(&self) -> Result<(), Broken> {
        let mut names = BTreeSet::new();
        match self.0.iter().find(|(name, _)| !names.insert(name)) {
            Some((field, _)) => Err(Broken::Twice {
                field: field.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder)
    }
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}

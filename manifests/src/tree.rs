// SPDX-License-Identifier: Apache-2.0
//! YAML as a tree whose nodes know their lines, and typed values read out of it.
//!
//! The types of k8s-openapi skip what they don't know. They do so by deserialising it as
//! `IgnoredAny`, which [`read`] sees, so that every skipped field is named with its line.

mod de;

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

pub(crate) use self::de::{Fault, read};

/// A node and where it is.
pub(crate) type Node = Spanned<Value>;

/// What a node is, with the scalars resolved as YAML 1.2's core schema does.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    String(String),
    Seq(Vec<Node>),
    Map(Vec<(Spanned<String>, Node)>),
}

/// The documents of a text in which JSON is YAML too. Empty ones are left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Node>, Fault> {
    let options = serde_saphyr::options! { strict_booleans: true, reject_unsupported_tags: true, with_snippet: false };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| Fault {
        line: error
            .location()
            .map(|at| at.line())
            .filter(|line| *line > 0),
        path: String::new(),
        message: error.without_snippet().to_string(),
    })
}

/// The line of a node, from 1.
pub(crate) fn line(node: &Node) -> u64 {
    node.referenced.line()
}

/// The string under a key of a map.
pub(crate) fn text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match field(node, key).map(|node| &node.value) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

/// The node under a key of a map.
pub(crate) fn field<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let Value::Map(entries) = &node.value else {
        return None;
    };
    let entry = entries.iter().find(|(name, _)| name.value == key);
    entry.map(|(_, node)| node)
}

// === impl Value ===

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a null, boolean, number, string, list or map")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Uint(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = seq.next_element()? {
            nodes.push(node);
        }
        Ok(Value::Seq(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}

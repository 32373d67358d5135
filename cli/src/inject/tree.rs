// SPDX-License-Identifier: Apache-2.0
//! YAML as a tree whose nodes know where they are in the text, so that a text can be edited and keep its comments.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A node and where it is.
pub type Node = Spanned<Value>;

/// What a node is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing, or null.
    Null,
    /// True or false.
    Bool(bool),
    /// Any other scalar, as text; a number, whose text is not needed, is none.
    Scalar(Option<String>),
    /// A list.
    Seq(Vec<Node>),
    /// A map, in its order.
    Map(Vec<(Spanned<String>, Node)>),
}

/// The documents of a text, empty ones left out.
pub fn parse(text: &str) -> Result<Vec<Node>, String> {
    let options = serde_saphyr::options! { with_snippet: false, reject_unsupported_tags: true };
    let read: Result<Vec<Node>, _> = serde_saphyr::from_multiple_with_options(text, options);
    read.map_err(|error| {
        let message = error.without_snippet().to_string();
        message.lines().next().unwrap_or_default().to_owned()
    })
}

/// Where something begins, in bytes.
pub fn offset<T>(node: &Spanned<T>) -> Option<usize> {
    let offset = node.referenced.span().byte_offset()?;
    usize::try_from(offset).ok()
}

/// The entries of a map.
pub fn entries(node: &Node) -> &[(Spanned<String>, Node)] {
    match &node.value {
        Value::Map(entries) => entries,
        _ => &[],
    }
}

/// The node under a key of a map.
pub fn field<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let entry = entries(node).iter().find(|(name, _)| name.value == key);
    entry.map(|(_, node)| node)
}

/// The node at a path of keys.
pub fn at<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    path.iter().try_fold(node, |node, key| field(node, key))
}

/// The text of a scalar.
pub fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(text) => text.as_deref(),
        _ => None,
    }
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
        f.write_str("YAML")
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

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Scalar(None))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Scalar(None))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Scalar(None))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Scalar(Some(text.to_owned())))
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

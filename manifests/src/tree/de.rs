// SPDX-License-Identifier: Apache-2.0
//! A serde deserialiser over the tree that knows lines and paths, and notes what is skipped.

use std::{cell::RefCell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor, value::StrDeserializer},
    forward_to_deserialize_any,
};
use serde_saphyr::Spanned;

use super::{Node, Value, line};

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", prefix(path))]
pub(crate) struct Fault {
    /// The line, from 1.
    pub(crate) line: Option<u64>,
    /// The field, as `spec.containers[0].name`; empty for the document itself.
    pub(crate) path: String,
    /// What was got and what was expected.
    pub(crate) message: String,
}

/// Reads a value, and refuses what it would skip.
pub(crate) fn read<'de, T: Deserialize<'de>>(node: &'de Node) -> Result<T, Fault> {
    let skipped = RefCell::new(None);
    let value = T::deserialize(Cursor {
        node,
        path: Path::Root,
        skipped: &skipped,
    });
    match (value, skipped.into_inner()) {
        (Err(fault), _) => Err(fault.within(node, &Path::Root)),
        (Ok(_), Some(fault)) => Err(fault),
        (Ok(value), None) => Ok(value),
    }
}

fn prefix(path: &str) -> String {
    if path.is_empty() {
        return String::new();
    }
    format!("{path}: ")
}

#[derive(Clone, Copy)]
enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

#[derive(Clone, Copy)]
struct Cursor<'p, 'de> {
    node: &'de Node,
    path: Path<'p>,
    skipped: &'p RefCell<Option<Fault>>,
}

struct Entries<'p, 'de> {
    rest: std::slice::Iter<'de, (Spanned<String>, Node)>,
    entry: Option<&'de (Spanned<String>, Node)>,
    parent: Cursor<'p, 'de>,
}

struct Elements<'p, 'de> {
    rest: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    parent: Cursor<'p, 'de>,
}

// === impl Fault ===

impl Fault {
    fn within(mut self, node: &Node, path: &Path<'_>) -> Self {
        if self.line.is_none() {
            self.line = Some(line(node));
            self.path = path.to_string();
        }
        self
    }
}

impl serde::de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            line: None,
            path: String::new(),
            message: message.to_string(),
        }
    }
}

// === impl Path ===

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

// === impl Cursor ===

impl<'p, 'de> Cursor<'p, 'de> {
    fn entries(self, entries: &'de [(Spanned<String>, Node)]) -> Entries<'p, 'de> {
        Entries {
            rest: entries.iter(),
            entry: None,
            parent: self,
        }
    }

    fn elements(self, nodes: &'de [Node]) -> Elements<'p, 'de> {
        Elements {
            rest: nodes.iter().enumerate(),
            parent: self,
        }
    }
}

impl<'de> Deserializer<'de> for Cursor<'_, 'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Uint(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(value) => visitor.visit_borrowed_str(value),
            Value::Seq(nodes) => visitor.visit_seq(self.elements(nodes)),
            Value::Map(entries) => visitor.visit_map(self.entries(entries)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let fault = Fault {
            line: Some(line(self.node)),
            path: self.path.to_string(),
            message: "unknown field; remove it or correct its name".to_owned(),
        };
        self.skipped.borrow_mut().get_or_insert(fault);
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct enum identifier
    }
}

// === impl Entries ===

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        self.entry = self.rest.next();
        let Some((key, _)) = self.entry else {
            return Ok(None);
        };
        seed.deserialize(StrDeserializer::new(&key.value)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let missing = || serde::de::Error::custom("a key without a value");
        let (key, node) = self.entry.take().ok_or_else(missing)?;
        let path = Path::Key(&self.parent.path, &key.value);
        let skipped = self.parent.skipped;
        let cursor = Cursor {
            node,
            path,
            skipped,
        };
        let value = seed.deserialize(cursor);
        value.map_err(|fault| fault.within(node, &path))
    }
}

// === impl Elements ===

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.rest.next() else {
            return Ok(None);
        };
        let path = Path::Index(&self.parent.path, index);
        let skipped = self.parent.skipped;
        let cursor = Cursor {
            node,
            path,
            skipped,
        };
        let value = seed.deserialize(cursor).map(Some);
        value.map_err(|fault| fault.within(node, &path))
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Edits of a text at the places that its tree names, in block style (as people write) and flow style (as JSON is).

use std::ops::Range;

use super::tree::{self, Node, Value};

/// A part of a text, and what takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// In bytes.
    pub range: Range<usize>,
    /// What is there instead.
    pub text: String,
}

/// The text with all edits. None may overlap another.
pub fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| std::cmp::Reverse(edit.range.start));
    let mut edited = text.to_owned();
    for edit in edits {
        if edited.get(edit.range.clone()).is_some() {
            edited.replace_range(edit.range, &edit.text);
        }
    }
    edited
}

// === Adding ===

/// Gives an object annotations below `metadata`. None if the text has it in a way that is not understood.
pub fn annotate(
    text: &str,
    object: &Node,
    metadata: &[&str],
    annotations: &[(&str, String)],
) -> Option<Vec<Edit>> {
    let keys: Vec<_> = metadata.iter().copied().chain(["annotations"]).collect();
    let mut node = object;
    for (at, key) in keys.iter().enumerate() {
        let nested = Nested {
            keys: &keys[at..],
            annotations,
        };
        match tree::field(node, key) {
            None => return Some(vec![insert(text, node, &nested)?]),
            Some(next) if matches!(next.value, Value::Null) => {
                return Some(vec![fill(text, next, &nested.inside())?]);
            }
            Some(next) => node = next,
        }
    }
    values(text, node, annotations)
}

/// Keys inside each other, with the annotations innermost.
struct Nested<'a> {
    keys: &'a [&'a str],
    annotations: &'a [(&'a str, String)],
}

impl Nested<'_> {
    fn inside(&self) -> Nested<'_> {
        Nested {
            keys: &self.keys[1..],
            ..*self
        }
    }

    fn flow(&self) -> String {
        match self.keys.split_first() {
            Some((key, _)) => format!("{}: {{{}}}", quoted(key), self.inside().flow()),
            None => {
                let entries = self.annotations.iter();
                let entries =
                    entries.map(|(key, value)| format!("{}: {}", quoted(key), quoted(value)));
                entries.collect::<Vec<_>>().join(", ")
            }
        }
    }

    fn block(&self, indent: usize) -> Vec<String> {
        let pad = " ".repeat(indent);
        match self.keys.split_first() {
            Some((key, _)) => {
                let inside = self.inside().block(indent + 2);
                std::iter::once(format!("{pad}{key}:"))
                    .chain(inside)
                    .collect()
            }
            None => {
                let entries = self.annotations.iter();
                entries
                    .map(|(key, value)| format!("{pad}{key}: {}", scalar(value)))
                    .collect()
            }
        }
    }
}

/// Before the first key of a map, where its indentation is known.
fn insert(text: &str, map: &Node, nested: &Nested<'_>) -> Option<Edit> {
    let Value::Map(entries) = &map.value else {
        return None;
    };
    let start = tree::offset(map)?;
    if text[start..].starts_with('{') {
        let comma = if entries.is_empty() { "" } else { ", " };
        return Some(at(start + 1, format!("{}{comma}", nested.flow())));
    }
    let first = tree::offset(&entries.first()?.0)?;
    let indent = first - line_start(text, first);
    let end = line_end(text);
    let lines = nested.block(indent).join(end);
    Some(at(
        first,
        format!("{}{end}{}", lines.trim_start(), " ".repeat(indent)),
    ))
}

/// In place of nothing, or of null in words.
fn fill(text: &str, null: &Node, nested: &Nested<'_>) -> Option<Edit> {
    let start = tree::offset(null)?;
    let flow = format!("{{{}}}", nested.flow());
    if text[start..].starts_with(':') {
        return Some(at(start + 1, format!(" {flow}")));
    }
    let word = ["null", "~"]
        .into_iter()
        .find(|word| text[start..].starts_with(word))?;
    Some(Edit {
        range: start..start + word.len(),
        text: flow,
    })
}

/// Replaces the values that are there, and adds the others.
fn values(text: &str, map: &Node, annotations: &[(&str, String)]) -> Option<Vec<Edit>> {
    let mut edits = Vec::new();
    let mut missing = Vec::new();
    for (key, value) in annotations {
        match tree::field(map, key) {
            Some(node) if tree::text(node) == Some(value) => {}
            Some(node) => edits.push(Edit {
                range: scalar_range(node)?,
                text: quoted(value),
            }),
            None => missing.push((*key, value.clone())),
        }
    }
    if !missing.is_empty() {
        let nested = Nested {
            keys: &[],
            annotations: &missing,
        };
        edits.push(insert(text, map, &nested)?);
    }
    Some(edits)
}

// === Removing ===

/// Takes annotations off an object: with them their map, if nothing else is in it, and with that the metadata of a
/// template, if nothing else is in that.
pub fn strip(
    text: &str,
    object: &Node,
    metadata: &[&str],
    unwanted: &dyn Fn(&str) -> bool,
) -> Option<Vec<Edit>> {
    let holder = tree::at(object, metadata)?;
    let annotations = tree::field(holder, "annotations")?;
    let entries = tree::entries(annotations);
    let all = entries.iter().all(|(key, _)| unwanted(&key.value));
    if !all {
        let unwanted = entries.iter().filter(|(key, _)| unwanted(&key.value));
        return unwanted
            .map(|(key, _)| remove(text, annotations, &key.value))
            .collect();
    }
    let (last, above) = metadata.split_last()?;
    let template = tree::at(object, above)?;
    let alone = tree::entries(holder).len() == 1 && !above.is_empty();
    match alone {
        true => Some(vec![remove(text, template, last)?]),
        false => Some(vec![remove(text, holder, "annotations")?]),
    }
}

fn remove(text: &str, map: &Node, key: &str) -> Option<Edit> {
    let (name, value) = tree::entries(map)
        .iter()
        .find(|(name, _)| name.value == key)?;
    let start = tree::offset(name)?;
    let end = end(text, value)?;
    let range = match text[tree::offset(map)?..].starts_with('{') {
        true => flow_range(text, start, end),
        false => block_range(text, start, end)?,
    };
    Some(Edit {
        range,
        text: String::new(),
    })
}

/// Where a node ends: a scalar by its length, a map in flow style by its brace.
fn end(text: &str, node: &Node) -> Option<usize> {
    let start = tree::offset(node)?;
    match &node.value {
        Value::Map(entries) => {
            let inside = match entries.last() {
                Some((_, last)) => end(text, last)?,
                None => start + 1,
            };
            if !text[start..].starts_with('{') {
                return Some(inside);
            }
            let rest = text[inside..].trim_start();
            rest.starts_with('}').then(|| text.len() - rest.len() + 1)
        }
        Value::Seq(_) => None,
        Value::Null => Some(start),
        Value::Bool(_) | Value::Scalar(_) => scalar_range(node).map(|range| range.end),
    }
}

fn scalar_range(node: &Node) -> Option<Range<usize>> {
    let start = tree::offset(node)?;
    let length = usize::try_from(node.referenced.span().byte_len()?).ok()?;
    Some(start..start + length)
}

/// With the comma after it, or else the one before it.
fn flow_range(text: &str, start: usize, end: usize) -> Range<usize> {
    if let Some(rest) = text[end..].trim_start().strip_prefix(',') {
        return start..text.len() - rest.trim_start().len();
    }
    match text[..start].trim_end().strip_suffix(',') {
        Some(before) => before.len()..end,
        None => start..end,
    }
}

/// Whole lines. None where the key shares its line with a `-`.
fn block_range(text: &str, start: usize, end: usize) -> Option<Range<usize>> {
    let line = line_start(text, start);
    let end = text[end..]
        .find('\n')
        .map_or(text.len(), |more| end + more + 1);
    text[line..start].trim().is_empty().then_some(line..end)
}

// === Text ===

fn at(offset: usize, text: String) -> Edit {
    Edit {
        range: offset..offset,
        text,
    }
}

fn line_start(text: &str, offset: usize) -> usize {
    text[..offset].rfind('\n').map_or(0, |end| end + 1)
}

fn line_end(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Plain where it can't be taken for anything but text.
fn scalar(text: &str) -> String {
    let word = text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    match word && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text) {
        true => text.to_owned(),
        false => quoted(text),
    }
}

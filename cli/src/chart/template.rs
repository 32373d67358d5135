// SPDX-License-Identifier: Apache-2.0
//! The part of Go's text/template, and of Helm's functions, that our chart is written in.
//!
//! | what | how |
//! |---|---|
//! | trim markers, comments | `{{-`, `-}}`, `{{/* … */}}` |
//! | values | `.a.b`, `.`, `$`, `$x`, `$x.a`, `"text"`, numbers, `true`, `false`, `(pipeline)` |
//! | pipelines | `f a b \| g c`: the left side is the last argument of the right |
//! | actions | `{{ pipeline }}`, `{{ $x := pipeline }}`, `if`/`else if`/`else`, `range` over a list, `define` |
//! | functions | `include`, and those of [`functions::CALLS`] |
//!
//! What Go would render, this renders the same (`cli/tests/chart.rs` compares); what is not in the table is refused
//! with its file and line. It is stricter in one thing: a value that is not there is an error, never `<no value>`.

mod exec;
mod functions;
mod lexer;
mod parser;

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use self::parser::Node;

/// Templates that may include each other.
#[derive(Debug)]
pub struct Templates {
    files: BTreeMap<String, Vec<Node>>,
    defines: BTreeMap<String, Define>,
}

/// A template can't be read or rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// The template's file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What was got, and what was expected.
    pub message: String,
}

#[derive(Debug)]
struct Define {
    file: String,
    body: Vec<Node>,
}

// === impl Templates ===

impl Templates {
    /// Reads templates, each a name and its text.
    pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Fault> {
        let mut templates = Self {
            files: BTreeMap::new(),
            defines: BTreeMap::new(),
        };
        for (name, text) in files {
            templates
                .add(name, text)
                .map_err(|(line, message)| Fault::new(name, line, message))?;
        }
        Ok(templates)
    }

    fn add(&mut self, file: &str, text: &str) -> Result<(), (usize, String)> {
        let parsed = parser::parse(&lexer::pieces(text)?)?;
        for define in parsed.defines {
            let taken = self.defines.insert(
                define.name.clone(),
                Define {
                    file: file.to_owned(),
                    body: define.body,
                },
            );
            if let Some(taken) = taken {
                let message = format!("{:?} is defined in {} already", define.name, taken.file);
                return Err((define.line, message));
            }
        }
        self.files.insert(file.to_owned(), parsed.body);
        Ok(())
    }

    /// The names of the files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Renders a file. It must be one of [`Templates::files`].
    pub fn render(&self, file: &str, data: &Value) -> Result<String, Fault> {
        match self.files.get(file) {
            Some(body) => exec::render(self, file, body, data),
            None => Err(Fault::new(file, 0, "there is no such template".to_owned())),
        }
    }
}

// === impl Fault ===

impl Fault {
    fn new(file: &str, line: usize, message: String) -> Self {
        Self {
            file: file.to_owned(),
            line,
            message,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: Apache-2.0
//! `culvert inject` and `culvert uninject`: annotations on manifests. Pure transforms; nothing is added to a pod, and what is
//! annotated means the same as what is annotated in a cluster.

mod args;
mod edit;
mod object;
mod tree;

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use culvert_api::annotations;
use serde_json::Value;
use serde_saphyr::Spanned;

pub use self::args::{InjectArgs, UninjectArgs};
use self::{edit::Edit, object::Object};
use crate::{
    chart::yaml,
    install::{Error, Result},
    output,
};

/// Opts in, or out.
const INJECT: &str = annotations::INJECT[0];

/// What uninject takes off with `--all` too: what inject may have put there, and what means the same. Others may have put it there, and
/// go on with it: Linkerd's opt-in, ports that a server needs in any mesh.
const MORE: &[&str] = &[
    annotations::INJECT[1],
    annotations::DEFAULT_INBOUND_POLICY[0],
    annotations::OPAQUE_PORTS[0],
    annotations::SKIP_INBOUND_PORTS[0],
    annotations::SKIP_OUTBOUND_PORTS[0],
    annotations::ACCESS_LOG[0],
];

/// A text after a transform, and what to tell of it.
#[derive(Debug)]
pub struct Transformed {
    /// The manifests.
    pub text: String,
    /// A line for each object.
    pub report: Vec<String>,
}

/// Runs `culvert inject`.
pub fn inject(args: &InjectArgs) -> Result<()> {
    let annotations = args.annotations();
    if args.manual {
        eprintln!(
            "--manual: nothing is added to pods, so there is nothing to add by hand; annotating as usual"
        );
    }
    let own = &args.culvert_namespace;
    each(&args.from, |text| injected(text, &annotations, own))
}

/// Runs `culvert uninject`.
pub fn uninject(args: &UninjectArgs) -> Result<()> {
    each(&args.from, |text| uninjected(text, args.all))
}

/// Annotates what can opt in. `own` is Culvert's namespace, which can't.
pub fn injected(
    text: &str,
    annotations: &[(&str, String)],
    own: &str,
) -> Result<Transformed, String> {
    transform(text, |object| {
        if let Some(reason) = object.refusal(own) {
            return (skipped(&reason), Change::Nothing);
        }
        let there = |(key, value): &(&str, String)| object.annotation(key) == Some(value.as_str());
        match annotations.iter().all(there) {
            true => ("unchanged".to_owned(), Change::Nothing),
            false => ("injected".to_owned(), Change::Annotate(annotations)),
        }
    })
}

/// Takes off what [`injected`] put there, or all that it could have. Who is out by name stays out: its namespace may opt in.
pub fn uninjected(text: &str, all: bool) -> Result<Transformed, String> {
    transform(text, |object| {
        let entries = object.annotations().map_or(&[][..], tree::entries);
        let ours = |(key, _): &(Spanned<String>, _)| is_removed(&key.value, all);
        let stays = match object.annotation(annotations::INJECT[1]) {
            Some(value) if !all => format!("{}: {value} stays", annotations::INJECT[1]),
            _ => String::new(),
        };
        match (object.is_disabled(), entries.iter().any(ours)) {
            (true, _) => (skipped("it is annotated as disabled"), Change::Nothing),
            (false, true) if stays.is_empty() => ("uninjected".to_owned(), Change::Strip { all }),
            (false, true) => (format!("uninjected, but {stays}"), Change::Strip { all }),
            (false, false) => (skipped(&stays), Change::Nothing),
        }
    })
}

fn is_removed(key: &str, all: bool) -> bool {
    key == INJECT || (all && MORE.contains(&key))
}

fn skipped(reason: &str) -> String {
    match reason {
        "" => "skipped".to_owned(),
        reason => format!("skipped: {reason}"),
    }
}

/// What is done to an object.
#[derive(Clone, Copy)]
enum Change<'a> {
    Nothing,
    Annotate(&'a [(&'a str, String)]),
    Strip { all: bool },
}

/// Edits the text in place, and makes sure that the edits mean what they should. Where they don't, e.g. because an
/// alias stands for the metadata, the documents are written anew, without comments.
fn transform<'a>(
    text: &str,
    decide: impl Fn(&Object<'_>) -> (String, Change<'a>),
) -> Result<Transformed, String> {
    let documents = tree::parse(text)?;
    let mut wanted = yaml::read_all(text)?;
    let mut report = Vec::new();
    let mut edits = Some(Vec::new());
    let mut values = wanted.iter_mut().flat_map(objects);
    for object in documents.iter().flat_map(object::objects) {
        let (what, change) = decide(&object);
        report.push(format!("{} {what}", object.title()));
        let (Some(value), Some(metadata)) = (values.next(), object.metadata) else {
            continue;
        };
        let changed = change.of_value(value, metadata);
        changed.map_err(|what| format!("{}: {what}", object.title()))?;
        let more = change.of_text(text, &object, metadata);
        edits = edits.zip(more).map(|(edits, more)| [edits, more].concat());
    }
    drop(values);
    let edited = edits.map(|edits| edit::apply(text, edits));
    let edited =
        edited.filter(|edited| yaml::read_all(edited).is_ok_and(|read| same(&read, &wanted)));
    let text = edited.unwrap_or_else(|| {
        report.push("the comments could not be kept".to_owned());
        wanted
            .iter()
            .map(|document| format!("---\n{}\n", yaml::write(document)))
            .collect()
    });
    Ok(Transformed { text, report })
}

/// As [`object::objects`].
fn objects(document: &mut Value) -> Vec<&mut Value> {
    let is_list = document["kind"]
        .as_str()
        .is_some_and(|kind| kind.ends_with("List"));
    if is_list && document["items"].is_array() {
        let items = document["items"].as_array_mut();
        return items.into_iter().flatten().flat_map(objects).collect();
    }
    vec![document]
}

fn same(read: &[Value], wanted: &[Value]) -> bool {
    read == wanted
}

// === impl Change ===

impl Change<'_> {
    fn of_text(self, text: &str, object: &Object<'_>, metadata: &[&str]) -> Option<Vec<Edit>> {
        match self {
            Self::Nothing => Some(Vec::new()),
            Self::Annotate(annotations) => edit::annotate(text, object.node, metadata, annotations),
            Self::Strip { all } => {
                edit::strip(text, object.node, metadata, &|key| is_removed(key, all))
            }
        }
    }

    fn of_value(self, object: &mut Value, metadata: &[&str]) -> Result<(), String> {
        match self {
            Self::Nothing => {}
            Self::Annotate(annotations) => {
                let holder = metadata
                    .iter()
                    .try_fold(object, |value, key| below(value, key))?;
                let holder = below(holder, "annotations")?;
                for (key, value) in annotations {
                    *below(holder, key)? = value.as_str().into();
                }
            }
            Self::Strip { all } => strip(object, metadata, all),
        }
        Ok(())
    }
}

/// What is under a key, in a map that is made where there is nothing.
fn below<'a>(value: &'a mut Value, key: &str) -> Result<&'a mut Value, String> {
    match value {
        Value::Null | Value::Object(_) => Ok(&mut value[key]),
        other => Err(format!("got {other}, expected a map with {key}")),
    }
}

fn strip(object: &mut Value, metadata: &[&str], all: bool) {
    let pointer = format!("/{}", metadata.join("/"));
    let Some(holder) = object.pointer_mut(&pointer).and_then(Value::as_object_mut) else {
        return;
    };
    let Some(annotations) = holder.get_mut("annotations").and_then(Value::as_object_mut) else {
        return;
    };
    annotations.retain(|key, _| !is_removed(key, all));
    if annotations.is_empty() {
        holder.remove("annotations");
    }
    let empty = holder.is_empty();
    let above = pointer.rsplit_once('/').map_or("", |(above, _)| above);
    if let (true, Some(Value::Object(template))) =
        (empty && metadata.len() > 1, object.pointer_mut(above))
    {
        template.remove("metadata");
    }
}

// === Files ===

fn each(from: &[String], transform: impl Fn(&str) -> Result<Transformed, String>) -> Result<()> {
    let mut texts = Vec::new();
    let mut report = Vec::new();
    for from in from {
        for (name, text) in read(from)? {
            let done =
                transform(&text).map_err(|message| Error::Usage(format!("{name}: {message}")))?;
            report.extend(done.report);
            texts.push(done.text);
        }
    }
    output::print(&joined(&texts))?;
    eprintln!("\n{}\n", report.join("\n"));
    Ok(())
}

/// Files as documents of one stream.
fn joined(texts: &[String]) -> String {
    let mut joined = String::new();
    for text in texts {
        if !joined.is_empty() && !text.starts_with("---") {
            joined += "---\n";
        }
        joined += text;
        if !joined.ends_with('\n') {
            joined.push('\n');
        }
    }
    joined
}

fn read(from: &str) -> Result<Vec<(String, String)>> {
    if from.starts_with("http://") || from.starts_with("https://") {
        let message =
            format!("{from}: nothing is fetched; try  curl -sL {from} | culvert inject -");
        return Err(Error::Usage(message));
    }
    if from == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(vec![("standard input".to_owned(), text)]);
    }
    let path = Path::new(from);
    let files = match path.is_dir() {
        true => manifests(path).map_err(|source| file_error(path, source))?,
        false => vec![path.to_owned()],
    };
    let read = |file: PathBuf| match fs::read_to_string(&file) {
        Ok(text) => Ok((file.display().to_string(), text)),
        Err(source) => Err(file_error(&file, source)),
    };
    files.into_iter().map(read).collect()
}

fn manifests(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn file_error(path: &Path, source: io::Error) -> Error {
    Error::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: Apache-2.0
//! What messages call a value of the chart is one: every `a.b` in a text of this program is a path of values.yaml, or is listed here.

use std::{fs, io, path::Path};

use serde_json::Value;

/// What else looks like it: files, keys of Secrets, fields of Kubernetes, domains.
const OTHERS: &[&str] = &["involvedObject.uid", "e.g"];
/// The ends of names that are no values.
const ENDS: &[&str] = &[
    ".io", ".rs", ".crt", ".key", ".pem", ".yaml", ".yml", ".json", ".sh", ".local", ".com", ".svc",
];

/// The texts of a source: what is between quotes, without tests and comments.
fn texts(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code: Vec<_> = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    // A quote that is a character, or escaped, opens nothing.
    let code = code.join("\n").replace("'\"'", "").replace("\\\"", "");
    let pieces = code.split('"').skip(1).step_by(2);
    pieces.map(str::to_owned).collect()
}

/// The words of a text that could be paths of values.
fn paths(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "._-/@:{}$*".contains(c)));
    let words = words.map(|word| word.trim_end_matches(['.', ':']));
    words.filter(|word| is_path(word)).collect()
}

fn is_path(word: &str) -> bool {
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase())
            && part.chars().all(|c| c.is_ascii_alphanumeric())
    };
    word.contains('.') && word.split('.').all(is_name)
}

fn sources(dir: &Path, into: &mut Vec<(String, String)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.display().to_string();
        // The sandbox has no chart.
        let is_other = ["/sandbox", "/tests.rs", "/testing.rs", "/hints.rs"]
            .iter()
            .any(|other| name.contains(other));
        match path.is_dir() {
            _ if is_other => {}
            true => sources(&path, into)?,
            false if name.ends_with(".rs") => into.push((name, fs::read_to_string(&path)?)),
            false => {}
        }
    }
    Ok(())
}

/// What is named in a source and no value; and how many values are.
fn unknown<'a>(texts: &'a [String], values: &Value) -> (Vec<&'a str>, usize) {
    let named = texts.iter().flat_map(|text| paths(text));
    let named =
        named.filter(|path| !OTHERS.contains(path) && !ENDS.iter().any(|end| path.ends_with(end)));
    let is_value = |path: &&str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        values.pointer(&pointer).is_some()
    };
    let (known, unknown): (Vec<_>, Vec<_>) = named.partition(is_value);
    (unknown, known.len())
}

#[test]
fn values_that_messages_name_are_there() -> io::Result<()> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    sources(&src, &mut all)?;
    let values = super::defaults();
    let (mut count, mut wrong) = (0, Vec::new());
    for (file, source) in &all {
        let texts = texts(source);
        let (unknown, known) = unknown(&texts, &values);
        wrong.extend(unknown.into_iter().map(|path| format!("{file}: {path}")));
        count += known;
    }
    assert!(
        wrong.is_empty(),
        "no values of the chart:\n{}",
        wrong.join("\n")
    );
    assert!(
        count >= 8,
        "only {count} values are named: are texts still found?"
    );
    Ok(())
}

#[test]
fn a_value_of_the_wrong_name_is_found() {
    let source = r#"let c = '"'; f("the chart's cni.netDir and paths.cniBinDir", "a.b/c");
        // "x.y"
        #[cfg(test)] "w.z""#;
    let texts = texts(source);
    let (unknown, known) = unknown(&texts, &super::defaults());
    assert_eq!((unknown, known), (vec!["cni.netDir"], 1));
}

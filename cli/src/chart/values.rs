// SPDX-License-Identifier: Apache-2.0
//! Values of a chart as a user gives them: files, and `--set`. Merged as Helm merges them.

use serde_json::{Map, Value};

/// Puts `more` over `values`: maps are merged, null removes, all else replaces.
pub fn merge(values: &mut Value, more: &Value) {
    let (Value::Object(values), Value::Object(more)) = (&mut *values, more) else {
        *values = more.clone();
        return;
    };
    for (key, value) in more {
        match values.get_mut(key) {
            _ if value.is_null() => {
                values.remove(key);
            }
            Some(old) if old.is_object() && value.is_object() => merge(old, value),
            _ => {
                values.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Reads `a.b=c,d.e={f,g}` as Helm's `--set` does: `\,` and `\.` are no separators, `{…}` is a list; true, false,
/// null and whole numbers are what they look like, unless `text` asks for strings only (`--set-string`).
pub fn set(assignments: &str, text: bool) -> Result<Value, String> {
    let mut values = Value::Object(Map::new());
    for assignment in split(assignments, ',') {
        let parts = split(&assignment, '=');
        let [path, rest @ ..] = parts.as_slice() else {
            return Err(wrong(assignments));
        };
        if rest.is_empty() || path.is_empty() {
            return Err(wrong(assignments));
        }
        let value = value(&rest.join("="), text);
        merge_set(&mut values, nested(path, value)?);
    }
    Ok(values)
}

/// A value at a path, e.g. `{"a": {"b": value}}`.
pub fn nested(path: &str, value: Value) -> Result<Value, String> {
    let keys = split(path, '.');
    if keys.iter().any(String::is_empty) {
        return Err(format!(
            "got {path:?}, expected a path such as control.replicas"
        ));
    }
    let wrap = |inner, key: &String| Value::Object(Map::from_iter([(plain(key), inner)]));
    Ok(keys.iter().rev().fold(value, wrap))
}

/// As [`merge`], but null stays, so that it still removes what it is merged over.
fn merge_set(values: &mut Value, more: Value) {
    match (values, more) {
        (Value::Object(values), Value::Object(more)) => {
            for (key, value) in more {
                merge_set(values.entry(key).or_insert(Value::Null), value);
            }
        }
        (values, more) => *values = more,
    }
}

fn wrong(text: &str) -> String {
    format!("got {text:?}, expected path=value, e.g. control.replicas=3")
}

/// At separators that are neither escaped nor in braces. Escapes stay.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut escaped, mut depth) = (false, 0_u32);
    for c in text.chars() {
        match c {
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth = depth.saturating_sub(1),
            _ => {}
        }
        match parts.last_mut() {
            _ if c == separator && !escaped && depth == 0 => parts.push(String::new()),
            Some(part) => part.push(c),
            None => {}
        }
        escaped = c == '\\' && !escaped;
    }
    parts
}

fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' {
            chars.next().unwrap_or(c)
        } else {
            c
        });
    }
    plain
}

fn value(written: &str, text: bool) -> Value {
    if let Some(list) = written
        .strip_prefix('{')
        .and_then(|list| list.strip_suffix('}'))
    {
        let elements = split(list, ',');
        let elements = elements.iter().filter(|element| !element.is_empty());
        return elements.map(|element| value(element, text)).collect();
    }
    match written {
        _ if text => plain(written).into(),
        "null" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        // A number that begins with 0 is a name of some kind.
        _ if written != "0" && written.starts_with('0') => plain(written).into(),
        _ => written
            .parse::<i64>()
            .map_or_else(|_| plain(written).into(), Value::from),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(text: &str) -> Value {
        super::set(text, false).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn set_reads_what_helm_reads() {
        assert_eq!(set("a.b=c,a.d=3"), json!({"a": {"b": "c", "d": 3}}));
        assert_eq!(
            set(r"a=b\,c,labels.x\.y/z=1"),
            json!({"a": "b,c", "labels": {"x.y/z": 1}})
        );
        assert_eq!(set("args={--a=1,--b}"), json!({"args": ["--a=1", "--b"]}));
        assert_eq!(
            set("a=true,b=false,c=007,d=,e=x=y"),
            json!({"a": true, "b": false, "c": "007", "d": "", "e": "x=y"})
        );
        assert_eq!(super::set("a=3", true), Ok(json!({"a": "3"})));
    }

    #[test]
    fn what_set_cannot_read_is_refused() {
        for wrong in ["a", "=b", "a..b=c", ""] {
            assert!(super::set(wrong, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn maps_are_merged_and_null_removes() {
        let mut values = json!({"a": {"b": 1, "c": [1]}, "d": 2});
        merge(&mut values, &json!({"a": {"c": [2]}, "d": null, "e": {}}));
        assert_eq!(values, json!({"a": {"b": 1, "c": [2]}, "e": {}}));
        merge(&mut values, &set("a.b=null"));
        assert_eq!(values, json!({"a": {"c": [2]}, "e": {}}));
    }
}

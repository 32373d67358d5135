// SPDX-License-Identifier: Apache-2.0
//! Holds values against the chart's `values.schema.json`, of which Helm makes the same use.
//!
//! The part of JSON Schema that it keeps to: `type`, `properties`, `additionalProperties`, `items`, `enum`,
//! `minimum`, `pattern` is not there. A test holds the file to that.

use serde_json::Value;

/// What is wrong with a value, each with its path.
pub fn mistakes(value: &Value, schema: &Value) -> Vec<String> {
    let mut mistakes = Vec::new();
    look("", value, schema, &mut mistakes);
    mistakes
}

fn look(path: &str, value: &Value, schema: &Value, mistakes: &mut Vec<String>) {
    if let Some(expected) = mismatch(value, schema) {
        mistakes.push(format!("{path}: got {value}, expected {expected}"));
        return;
    }
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                property(&path, key, value, schema, mistakes);
            }
        }
        Value::Array(elements) => {
            if let Some(items) = schema.get("items") {
                for (at, element) in elements.iter().enumerate() {
                    look(&format!("{path}[{at}]"), element, items, mistakes);
                }
            }
        }
        _ => {}
    }
}

fn property(path: &str, key: &str, value: &Value, schema: &Value, mistakes: &mut Vec<String>) {
    let known = schema
        .get("properties")
        .and_then(|properties| properties.get(key));
    match (known, schema.get("additionalProperties")) {
        (Some(known), _) => look(path, value, known, mistakes),
        (None, Some(Value::Bool(false))) => mistakes.push(unknown(path, schema)),
        (None, Some(others)) => look(path, value, others, mistakes),
        (None, None) => {}
    }
}

fn unknown(path: &str, schema: &Value) -> String {
    let known = schema.get("properties").and_then(Value::as_object);
    let known: Vec<_> = known
        .into_iter()
        .flat_map(|known| known.keys())
        .map(String::as_str)
        .collect();
    format!(
        "{path}: there is no such value, there are {}",
        known.join(", ")
    )
}

fn mismatch(value: &Value, schema: &Value) -> Option<String> {
    if let Some(Value::Array(allowed)) = schema.get("enum") {
        return (!allowed.contains(value)).then(|| one_of(allowed));
    }
    let types = match schema.get("type")? {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    if !types.iter().any(|expected| is(value, expected)) {
        return Some(one_of(&types));
    }
    let minimum = schema.get("minimum")?.as_i64()?;
    (value.as_i64()? < minimum).then(|| format!("at least {minimum}"))
}

fn one_of(values: &[Value]) -> String {
    let text = |value: &Value| match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        other => other.to_string(),
    };
    values.iter().map(text).collect::<Vec<_>>().join(" or ")
}

fn is(value: &Value, expected: &Value) -> bool {
    match expected.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("null") => value.is_null(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "additionalProperties": false, "properties": {
            "name": {"type": "string"}, "level": {"enum": ["info", "debug"]},
            "replicas": {"type": "integer", "minimum": 1},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "args": {"type": "array", "items": {"type": "string"}},
            "many": {"type": ["integer", "string"]}}})
    }

    #[test]
    fn what_fits_has_no_mistake() {
        let value = json!({"name": "a", "level": "info", "replicas": 3, "labels": {"a": "b"}, "args": ["x"], "many": "10%"});
        assert_eq!(mistakes(&value, &schema()), Vec::<String>::new());
    }

    #[test]
    fn each_mistake_is_named_with_its_path() {
        let value =
            json!({"nmae": "a", "level": "loud", "replicas": 0, "labels": {"a": 1}, "args": [2]});
        let expected = [
            "args[0]: got 2, expected string",
            "labels.a: got 1, expected string",
            "level: got \"loud\", expected info or debug",
            "nmae: there is no such value, there are args, labels, level, many, name, replicas",
            "replicas: got 0, expected at least 1",
        ];
        let mut mistakes = mistakes(&value, &schema());
        mistakes.sort();
        assert_eq!(mistakes, expected);
    }
}

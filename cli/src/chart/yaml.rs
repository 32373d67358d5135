// SPDX-License-Identifier: Apache-2.0
//! YAML as the values of JSON, which is all that Kubernetes knows.

use serde_json::Value;

/// Reads one document. The message has no file, but the line where there is one.
pub fn read(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| message(&error))
}

/// Reads all documents but empty ones.
pub fn read_all(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| message(&error))
}

/// Writes a value in block style, without a line end at its end.
pub fn write(value: &Value) -> String {
    match value {
        // A map of this kind has its place behind a key, too.
        Value::Array(elements) if elements.is_empty() => "[]".to_owned(),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        _ => serde_saphyr::to_string(value)
            .map_or_else(|_| value.to_string(), |text| text.trim_end().to_owned()),
    }
}

fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

// SPDX-License-Identifier: Apache-2.0
//! The functions of Go's templates, of sprig and of Helm that our chart uses. Each does what theirs does.

use std::path::Path;

use serde_json::Value;

use crate::chart::yaml;

type Answer = Result<Value, String>;
type Function = fn(&[Value]) -> Answer;

/// The functions, with the number of their arguments; at least that many where it is negative.
const CALLS: &[(&str, isize, Function)] = &[
    ("add", 2, |v| Ok((int(&v[0])? + int(&v[1])?).into())),
    ("and", -1, |v| Ok(pick(v, false))),
    ("b64enc", 1, |v| base64(string(&v[0])?)),
    ("base", 1, |v| path(&v[0], Path::file_name)),
    ("contains", 2, |v| {
        Ok(string(&v[1])?.contains(string(&v[0])?).into())
    }),
    ("default", 2, |v| Ok(v[usize::from(truth(&v[1]))].clone())),
    ("dir", 1, |v| {
        path(&v[0], |path| path.parent().map(Path::as_os_str))
    }),
    ("eq", 2, |v| Ok((v[0] == v[1]).into())),
    ("gt", 2, |v| Ok((int(&v[0])? > int(&v[1])?).into())),
    ("index", 2, |v| {
        Ok(v[0].get(string(&v[1])?).cloned().unwrap_or(Value::Null))
    }),
    ("int", 1, |v| int(&v[0]).map(Value::from)),
    ("lower", 1, |v| Ok(string(&v[0])?.to_lowercase().into())),
    ("nindent", 2, |v| {
        Ok(format!("\n{}", indent(int(&v[0])?, string(&v[1])?)).into())
    }),
    ("not", 1, |v| Ok((!truth(&v[0])).into())),
    ("or", -1, |v| Ok(pick(v, true))),
    ("printf", -1, |v| printf(v)),
    ("quote", 1, |v| {
        Ok(Value::String(Value::String(print(&v[0])?).to_string()))
    }),
    ("required", 2, |v| required(string(&v[0])?, &v[1])),
    ("semverCompare", 2, |v| {
        since(string(&v[0])?, string(&v[1])?).map(Value::from)
    }),
    ("toYaml", 1, |v| Ok(yaml::write(&v[0]).into())),
    ("trim", 1, |v| Ok(string(&v[0])?.trim().into())),
];

/// Calls a function by its name.
pub fn call(name: &str, arguments: &[Value]) -> Answer {
    let Some((_, count, function)) = CALLS.iter().find(|(known, ..)| *known == name) else {
        return Err("there is no such function, see functions.rs".to_owned());
    };
    let enough = match usize::try_from(*count) {
        Ok(count) => arguments.len() == count,
        Err(_) => arguments.len() >= count.unsigned_abs(),
    };
    if !enough {
        return Err(format!(
            "got {} arguments, expected {}",
            arguments.len(),
            count.unsigned_abs()
        ));
    }
    function(arguments)
}

/// Whether Go's `if` holds.
pub fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(elements) => !elements.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// What a value looks like where it is printed.
pub fn print(value: &Value) -> Result<String, String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Array(_) | Value::Object(_) => Err(format!(
            "got {value}, expected text or a number: print it with toYaml"
        )),
    }
}

/// The first value whose truth is as wanted, or the last.
fn pick(values: &[Value], wanted: bool) -> Value {
    let found = values.iter().find(|value| truth(value) == wanted);
    found.or(values.last()).cloned().unwrap_or(Value::Null)
}

fn string(value: &Value) -> Result<&str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("got {value}, expected text"))
}

fn int(value: &Value) -> Result<i64, String> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_i64(),
        _ => None,
    };
    number.ok_or_else(|| format!("got {value}, expected a whole number"))
}

fn path(value: &Value, part: fn(&Path) -> Option<&std::ffi::OsStr>) -> Answer {
    let part = part(Path::new(string(value)?)).and_then(|part| part.to_str());
    part.map(Value::from)
        .ok_or_else(|| format!("got {value}, expected a path of a file"))
}

fn indent(spaces: i64, text: &str) -> String {
    let pad = " ".repeat(usize::try_from(spaces).unwrap_or(0));
    format!("{pad}{}", text.replace('\n', &format!("\n{pad}")))
}

fn required(message: &str, value: &Value) -> Answer {
    match value {
        Value::Null => Err(message.to_owned()),
        Value::String(text) if text.is_empty() => Err(message.to_owned()),
        _ => Ok(value.clone()),
    }
}

/// As the data of a Secret.
fn base64(text: &str) -> Answer {
    let bytes = k8s_openapi::ByteString(text.as_bytes().to_vec());
    serde_json::to_value(bytes).map_err(|error| error.to_string())
}

/// `%s` only.
fn printf(values: &[Value]) -> Answer {
    let mut parts = string(&values[0])?.split("%s");
    let mut text = parts.next().unwrap_or_default().to_owned();
    let mut values = values[1..].iter();
    for part in parts {
        let value = values.next().ok_or("more %s than values")?;
        text += &print(value)?;
        text += part;
    }
    match (text.contains('%'), values.next()) {
        (false, None) => Ok(text.into()),
        _ => Err("expected as many %s as values, and no other %".to_owned()),
    }
}

/// Whether a version is `>=1.N-0`, pre-releases of it included.
fn since(constraint: &str, version: &str) -> Result<bool, String> {
    let least = constraint
        .strip_prefix(">=")
        .and_then(|least| least.strip_suffix("-0"));
    let least = least.and_then(minor);
    let least =
        least.ok_or_else(|| format!("got {constraint:?}, expected such as \">=1.22-0\""))?;
    let version = minor(version)
        .ok_or_else(|| format!("got {version:?}, expected a version such as v1.28.0"))?;
    Ok(version >= least)
}

fn minor(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

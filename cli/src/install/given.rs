// SPDX-License-Identifier: Apache-2.0
//! The values that a user gives.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use serde_json::{Map, Value};

use super::{Error, Result, args::ValuesArgs};
use crate::chart::{self, values, yaml};

/// The values in the order in which they count: `--ha`, files, `--set`, `--set-string`, `--set-file`, files of identity.
pub fn given(args: &ValuesArgs) -> Result<Value> {
    let mut given = Value::Object(Map::new());
    if args.ha {
        values::merge(&mut given, &chart::high_availability());
    }
    for file in &args.files {
        over(&mut given, file_of_values(file)?);
    }
    for (assignments, text) in strings(args) {
        let set = values::set(assignments, text);
        over(
            &mut given,
            set.map_err(|m| Error::Usage(format!("--set: {m}")))?,
        );
    }
    for assignment in &args.set_file {
        over(&mut given, set_file(assignment)?);
    }
    for (path, file) in identity(args) {
        if let Some(file) = file {
            let text = read(file)?;
            over(
                &mut given,
                values::nested(path, text.into()).map_err(Error::Usage)?,
            );
        }
    }
    Ok(given)
}

fn over(given: &mut Value, more: Value) {
    values::merge(given, &more);
}

fn strings(args: &ValuesArgs) -> impl Iterator<Item = (&String, bool)> {
    let texts = args.set_string.iter().map(|text| (text, true));
    args.set.iter().map(|set| (set, false)).chain(texts)
}

fn identity(args: &ValuesArgs) -> [(&'static str, Option<&Path>); 3] {
    [
        (
            "identity.trustAnchorsPEM",
            args.identity_trust_anchors_file.as_deref(),
        ),
        (
            "identity.issuer.certificatePEM",
            args.identity_issuer_certificate_file.as_deref(),
        ),
        (
            "identity.issuer.keyPEM",
            args.identity_issuer_key_file.as_deref(),
        ),
    ]
}

fn file_of_values(path: &Path) -> Result<Value> {
    let text = read(path)?;
    match yaml::read(&text) {
        Ok(values @ Value::Object(_)) => Ok(values),
        // A file of comments.
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(_) => Err(Error::Usage(format!(
            "{}: expected a map of values",
            path.display()
        ))),
        Err(message) => Err(Error::Usage(format!("{}: {message}", path.display()))),
    }
}

fn set_file(assignment: &str) -> Result<Value> {
    let Some((path, file)) = assignment.split_once('=') else {
        let message = format!("--set-file: got {assignment:?}, expected path=file");
        return Err(Error::Usage(message));
    };
    let text = read(Path::new(file))?;
    values::nested(path, text.into()).map_err(|m| Error::Usage(format!("--set-file: {m}")))
}

fn read(path: &Path) -> Result<String> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    read.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn later_values_count() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (file, anchor) = (dir.path().join("v.yaml"), dir.path().join("a.pem"));
        fs::write(&file, "control: {replicas: 5, address: a:1}\n# nothing\n")?;
        fs::write(&anchor, "PEM\n")?;
        let args = ValuesArgs {
            ha: true,
            files: vec![file],
            set: vec!["control.address=b:2,proxy.surge=false".to_owned()],
            set_string: vec!["labels.a=1".to_owned()],
            identity_trust_anchors_file: Some(anchor),
            ..ValuesArgs::default()
        };
        let given = given(&args)?;
        let control = json!({"replicas": 5, "spread": true, "address": "b:2", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}});
        assert_eq!(given["control"], control);
        assert_eq!(given["labels"], json!({"a": "1"}));
        assert_eq!(given["identity"], json!({"trustAnchorsPEM": "PEM\n"}));
        Ok(())
    }

    #[test]
    fn a_file_that_holds_no_values_is_named() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("list.yaml");
        fs::write(&file, "- a\n")?;
        let args = ValuesArgs {
            files: vec![file],
            ..ValuesArgs::default()
        };
        let refused = given(&args).map_err(|e| e.to_string());
        assert!(refused.is_err_and(|e| e.ends_with("list.yaml: expected a map of values")));
        Ok(())
    }
}

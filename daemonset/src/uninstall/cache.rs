// SPDX-License-Identifier: Apache-2.0
//! Whether somebody will call our plugin for a pod although our configuration is gone: CRI-O and
//! Multus delete a pod by the configuration that it was added with.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::ByteString;
use serde_json::Value;

/// Of libcni (<https://github.com/containernetworking/cni/blob/v1.3.0/libcni/api.go>).
const RESULTS: &str = "results";
/// Of Multus.
const MULTUS: &str = "multus";

/// A file below libcni's `dir` that names a plugin of this type.
///
/// containerd deletes by the configuration of now, and keeps the results only because libcni does.
pub fn names(dir: &Path, kind: &str, is_containerd: bool) -> io::Result<Option<PathBuf>> {
    let results = (!is_containerd).then_some(RESULTS);
    for name in results.into_iter().chain([MULTUS]) {
        let found = find(&dir.join(name), kind)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn find(dir: &Path, kind: &str) -> io::Result<Option<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() && mentions(&fs::read(entry.path())?, kind) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The configuration is a member in base64. What can't be read is taken for one.
fn mentions(text: &[u8], kind: &str) -> bool {
    match serde_json::from_slice(text) {
        Ok(value) => holds(&value, kind),
        Err(_) => text.windows(kind.len()).any(|part| part == kind.as_bytes()),
    }
}

fn holds(value: &Value, kind: &str) -> bool {
    match value {
        Value::String(text) => {
            text == kind || decoded(value).is_some_and(|text| mentions(&text, kind))
        }
        Value::Array(values) => values.iter().any(|value| holds(value, kind)),
        Value::Object(fields) => fields.values().any(|value| holds(value, kind)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn decoded(text: &Value) -> Option<Vec<u8>> {
    let ByteString(bytes) = serde_json::from_value(text.clone()).ok()?;
    // Words are base64 by chance.
    bytes.starts_with(b"{").then_some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    const OURS: &str = "culvert-cni";

    /// As libcni 1.3 writes it.
    fn cached(config: &Value) -> String {
        let config = ByteString(config.to_string().into_bytes());
        json!({
            "kind": "cniCacheV1", "containerId": "c", "ifName": "eth0", "networkName": "n",
            "config": config, "result": {"cniVersion": "1.0.0"}
        })
        .to_string()
    }

    fn chain(kinds: &[&str]) -> Value {
        let plugins: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
        json!({"cniVersion": "1.0.0", "name": "n", "plugins": plugins})
    }

    #[test]
    fn a_cached_chain_is_found() {
        let dir = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        let look = |is_containerd| {
            names(dir.path(), OURS, is_containerd).unwrap_or_else(|e| panic!("{e}"))
        };
        assert_eq!(look(false), None, "there is no cache");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            let parent = path.parent().map(fs::create_dir_all);
            parent.unwrap_or(Ok(())).unwrap_or_else(|e| panic!("{e}"));
            fs::write(&path, text).unwrap_or_else(|e| panic!("{e}"));
            path
        };
        write("results/n-a-eth0", &cached(&chain(&["bridge", "portmap"])));
        write("results/n-b-eth0", "{");
        assert_eq!(look(false), None);
        let ours = write("results/n-c-eth0", &cached(&chain(&["bridge", OURS])));
        assert_eq!(look(false), Some(ours.clone()));
        assert_eq!(look(true), None, "containerd does not use it");
        fs::remove_file(ours).unwrap_or_else(|e| panic!("{e}"));
        let multus = write(
            "multus/c-eth0",
            &json!([{"Conf": chain(&[OURS])}]).to_string(),
        );
        assert_eq!(look(true), Some(multus));
    }
}

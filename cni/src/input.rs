// SPDX-License-Identifier: Apache-2.0
//! The command and its parameters, from the environment
//! (<https://www.cni.dev/docs/spec/#parameters>).

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    str::FromStr,
};

use culvert_api::cni::Attachment;

use crate::error::Error;

/// `IFNAMSIZ` with its final zero.
const IFNAMSIZ: usize = 16;

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Let go of a container.
    Del,
    /// Is a container as ADD left it?
    Check,
    /// Let go of all but the listed containers.
    Gc,
    /// Could a container be added now?
    Status,
    /// Which versions are spoken?
    Version,
}

/// The `CNI_*` variables.
#[derive(Debug, Default)]
pub struct Environment {
    variables: BTreeMap<&'static str, OsString>,
}

// === impl Environment ===

impl Environment {
    const NAMES: [&'static str; 5] = [
        "CNI_COMMAND",
        "CNI_CONTAINERID",
        "CNI_NETNS",
        "CNI_IFNAME",
        "CNI_ARGS",
    ];

    /// What this process was started with.
    pub fn of_process() -> Self {
        let read = |name| Some((name, env::var_os(name)?));
        Self {
            variables: Self::NAMES.into_iter().filter_map(read).collect(),
        }
    }

    /// `CNI_COMMAND`.
    pub fn verb(&self) -> Result<Verb, Error> {
        let name = "CNI_COMMAND";
        verb(self.required(name)?).ok_or_else(|| {
            let got = self.text(name).ok().flatten().unwrap_or_default();
            let expected = "ADD, DEL, CHECK, GC, STATUS or VERSION";
            invalid(name, format!("got {got:?}, expected {expected}"))
        })
    }

    /// The container, whose namespace the runtime must name.
    pub fn attachment(&self, network: &str) -> Result<Attachment, Error> {
        self.required("CNI_NETNS")?;
        self.old_attachment(network)
    }

    /// The container, whose namespace may be gone (DEL).
    pub fn old_attachment(&self, network: &str) -> Result<Attachment, Error> {
        Ok(Attachment {
            network: network.to_owned(),
            container_id: container_id(self.required("CNI_CONTAINERID")?)?,
            ifname: ifname(self.required("CNI_IFNAME")?)?,
            netns: self.text("CNI_NETNS")?.map(netns).transpose()?,
            args: args(self.text("CNI_ARGS")?.unwrap_or_default())?,
        })
    }

    fn required(&self, name: &'static str) -> Result<&str, Error> {
        self.text(name)?
            .ok_or_else(|| invalid(name, "is not set or empty".to_owned()))
    }

    /// A variable; set to nothing counts as not set.
    fn text(&self, name: &'static str) -> Result<Option<&str>, Error> {
        let Some(value) = self.variables.get(name) else {
            return Ok(None);
        };
        let text = value
            .to_str()
            .ok_or_else(|| invalid(name, format!("got {value:?}, expected UTF-8")))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

fn invalid(variable: &'static str, problem: String) -> Error {
    Error::Environment { variable, problem }
}

fn verb(text: &str) -> Option<Verb> {
    match text {
        // Unknown to cni-plugin 0.2.1.
        "GC" => return Some(Verb::Gc),
        "STATUS" => return Some(Verb::Status),
        _ => {}
    }
    Some(match cni_plugin::Command::from_str(text).ok()? {
        cni_plugin::Command::Add => Verb::Add,
        cni_plugin::Command::Del => Verb::Del,
        cni_plugin::Command::Check => Verb::Check,
        cni_plugin::Command::Version => Verb::Version,
    })
}

fn container_id(id: &str) -> Result<String, Error> {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(rest) {
        return Ok(id.to_owned());
    }
    let expected = "a letter or digit, then letters, digits, '_', '.' and '-'";
    Err(invalid(
        "CNI_CONTAINERID",
        format!("got {id:?}, expected {expected}"),
    ))
}

fn ifname(name: &str) -> Result<String, Error> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.len() < IFNAMSIZ && !name.contains(bad) && name != "." && name != ".." {
        return Ok(name.to_owned());
    }
    let expected = "at most 15 bytes without '/', ':' and spaces";
    Err(invalid(
        "CNI_IFNAME",
        format!("got {name:?}, expected {expected}"),
    ))
}

fn netns(path: &str) -> Result<PathBuf, Error> {
    if Path::new(path).is_absolute() {
        return Ok(path.into());
    }
    Err(invalid(
        "CNI_NETNS",
        format!("got {path:?}, expected an absolute path"),
    ))
}

fn args(text: &str) -> Result<BTreeMap<String, String>, Error> {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(invalid(
            "CNI_ARGS",
            format!("got {pair:?}, expected KEY=VALUE;KEY=VALUE"),
        )),
    };
    text.split(';')
        .filter(|text| !text.is_empty())
        .map(pair)
        .collect()
}

#[cfg(test)]
mod tests;

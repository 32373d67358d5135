// SPDX-License-Identifier: Apache-2.0
//! What an uninstall is going to do, said before it is done.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, IsTerminal},
};

use super::{list, objects::Object};
use crate::install::{Error, Result};

/// What goes from which cluster.
#[derive(Debug)]
pub struct Plan<'a> {
    /// As [`crate::cluster::ClusterArgs::title`] says it.
    pub cluster: &'a str,
    /// Culvert's namespace.
    pub namespace: &'a str,
    /// All that is Culvert's, in the order in which it goes.
    pub found: &'a [Object],
    /// What is in the namespace and not Culvert's: the namespace stays for it.
    pub strangers: &'a BTreeSet<String>,
}

// === impl Plan ===

impl<'a> Plan<'a> {
    /// What goes: all, or all but the namespace.
    pub fn goes(&self) -> Vec<&'a Object> {
        let goes = |object: &&Object| self.strangers.is_empty() || !object.is_namespace();
        self.found.iter().filter(goes).collect()
    }

    /// Why the namespace stays, if it does.
    pub fn stays(&self) -> Option<String> {
        (!self.strangers.is_empty()).then(|| stays(self.namespace, self.strangers))
    }

    /// All of it, for people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "Culvert is to go from {}, namespace {}. Pods leave the mesh and keep running; \
             what they say to each other is plaintext then.\n",
            self.cluster, self.namespace
        );
        for object in self.goes() {
            let with = match object.is_namespace() {
                true => ", with all that is in it",
                false => "",
            };
            text += &format!("  {}{with}\n", object.title());
        }
        if let Some(stays) = self.stays() {
            text += &format!("{stays}\n");
        }
        text
    }
}

/// Why a namespace stays.
pub fn stays(namespace: &str, strangers: &BTreeSet<String>) -> String {
    format!(
        "Namespace {namespace} stays, since not all that is in it is Culvert's: {}",
        list(strangers)
    )
}

/// Asks whether to go on, unless that was said already.
pub fn confirm(yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let message = "nothing was changed: there is no terminal to ask on, so it wants --yes";
        return Err(Error::Usage(message.to_owned()));
    }
    eprint!("Go on? [y/N] ");
    match is_yes(io::stdin().lock()) {
        true => Ok(()),
        false => Err(Error::State("nothing was changed".to_owned())),
    }
}

/// Who can't be heard has not agreed.
fn is_yes(mut input: impl BufRead) -> bool {
    let mut answer = String::new();
    let heard = input.read_line(&mut answer);
    heard.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        let agreed = |text: &[u8]| is_yes(text);
        assert!(agreed(b"y\n") && agreed(b"Yes\n") && agreed(b"y\nn\n"));
        for other in [&b""[..], b"\n", b"no\n", b"yess\n", b"\xff\n", b"n\ny\n"] {
            assert!(!agreed(other), "{other:?}");
        }
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Join tokens, one per node, made by whoever runs the nodes. Control knows their hashes only.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use tokio::sync::watch;

use super::{Authenticator, By, Caller, Hash, Standing, hash_of};

const RELOAD: Duration = Duration::from_secs(1);

/// The hash of each node's token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    nodes: BTreeMap<String, Hash>,
}

/// The file of the join tokens is of no use.
#[derive(Debug, thiserror::Error)]
pub enum BadTokens {
    /// The file can't be read.
    #[error("could not read the join tokens: {0}")]
    Read(#[from] std::io::Error),
    /// Not a map of strings.
    #[error("got {0}, expected a JSON object of node names and SHA-256 hashes")]
    Json(#[from] serde_json::Error),
    /// A hash is none.
    #[error("the hash of node {node:?} is not 64 hexadecimal digits")]
    Hash {
        /// Whose it is.
        node: String,
    },
    /// A node without a name.
    #[error("a node has the empty name")]
    NoName,
    /// A token names one node.
    #[error("nodes {first:?} and {second:?} have the same token; make one for each")]
    Shared {
        /// A node.
        first: String,
        /// Another node.
        second: String,
    },
}

/// The tokens as the file has them now.
#[derive(Clone, Debug)]
pub(super) struct Joined(watch::Receiver<Arc<Tokens>>);

/// That a token is a node's.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    node: String,
    hash: Hash,
    tokens: watch::Receiver<Arc<Tokens>>,
}

/// The file of the join tokens, followed.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    tokens: watch::Sender<Arc<Tokens>>,
    last: Option<Result<Tokens, String>>,
}

// === impl Tokens ===

impl Tokens {
    /// Reads `{"<node>": "<SHA-256 of the token, in hex>"}`.
    pub fn parse(text: &str) -> Result<Self, BadTokens> {
        let texts: BTreeMap<String, String> = serde_json::from_str(text)?;
        let mut nodes = BTreeMap::new();
        let mut owners = BTreeMap::new();
        for (node, text) in texts {
            let hash = parse_hash(&text).ok_or_else(|| BadTokens::Hash { node: node.clone() })?;
            if node.is_empty() {
                return Err(BadTokens::NoName);
            }
            if let Some(first) = owners.insert(hash, node.clone()) {
                let second = node;
                return Err(BadTokens::Shared { first, second });
            }
            nodes.insert(node, hash);
        }
        Ok(Self { nodes })
    }

    /// Compares with every token, so that the time says nothing of them.
    fn node(&self, hash: &Hash) -> Option<&str> {
        self.nodes.iter().fold(None, |found, (node, known)| {
            let equal = verify_slices_are_equal(known, hash).is_ok();
            if equal { Some(node.as_str()) } else { found }
        })
    }
}

fn parse_hash(text: &str) -> Option<Hash> {
    let digits: Option<Vec<_>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| u8::try_from(high * 16 + low).ok());
    let bytes: Option<Vec<_>> = bytes.collect();
    rest.is_empty().then(|| bytes?.try_into().ok())?
}

// === impl Joined ===

impl Joined {
    /// The nodes that have a token.
    pub(super) fn nodes(&self) -> Vec<String> {
        self.0.borrow().nodes.keys().cloned().collect()
    }

    /// Whose the token is.
    pub(super) fn caller(&self, token: &str) -> Option<Caller> {
        let hash = hash_of(token);
        let node = self.0.borrow().node(&hash).map(str::to_owned)?;
        let membership = Membership {
            node: node.clone(),
            hash,
            tokens: self.0.clone(),
        };
        Some(Caller {
            node,
            standing: Standing::Member(membership),
        })
    }
}

// === impl Membership ===

impl Membership {
    /// Waits until the token is no longer the node's.
    pub(super) async fn revoked(&mut self) {
        let (node, hash) = (&self.node, &self.hash);
        let revoked = self
            .tokens
            .wait_for(|tokens| tokens.node(hash) != Some(node));
        if revoked.await.map(drop).is_err() {
            // Nobody follows the file any more: control is stopping.
            std::future::pending::<()>().await;
        }
    }
}

// === impl TokenFile ===

impl TokenFile {
    /// Reads the file. A file that is missing or bad is logged, and nobody gets in until it is good.
    pub fn open(path: PathBuf) -> Self {
        let mut file = Self {
            path,
            tokens: watch::Sender::default(),
            last: None,
        };
        file.load(read(&file.path));
        file
    }

    /// Tells nodes by the tokens of this file.
    pub fn authenticator(&self) -> Authenticator {
        Authenticator {
            by: By::Join(Joined(self.tokens.subscribe())),
        }
    }

    /// Reads the file again and again. While it is bad, the last good tokens hold.
    pub async fn follow(mut self) {
        loop {
            tokio::time::sleep(RELOAD).await;
            let path = self.path.clone();
            if let Ok(tokens) = tokio::task::spawn_blocking(move || read(&path)).await {
                self.load(tokens);
            }
        }
    }

    fn load(&mut self, tokens: Result<Tokens, BadTokens>) {
        let tokens = tokens.map_err(|error| error.to_string());
        if self.last.as_ref() == Some(&tokens) {
            return;
        }
        let path = self.path.display();
        match &tokens {
            Ok(tokens) => {
                tracing::info!(file.path = %path, nodes = tokens.nodes.len(), "Read the join tokens");
                self.tokens.send_replace(Arc::new(tokens.clone()));
            }
            Err(error) => {
                tracing::error!(file.path = %path, %error, "Could not use the join tokens; the last good ones hold");
            }
        }
        self.last = Some(tokens);
    }
}

fn read(path: &std::path::Path) -> Result<Tokens, BadTokens> {
    Tokens::parse(&std::fs::read_to_string(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf secret | sha256sum`
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    #[test]
    fn a_token_names_its_node() {
        let tokens = Tokens::parse(&format!(
            r#"{{"a": "{SECRET}", "b": "{}"}}"#,
            "0".repeat(64)
        ));
        let sender = watch::Sender::new(Arc::new(tokens.unwrap_or_else(|e| panic!("{e}"))));
        let joined = Joined(sender.subscribe());
        let node = |token| joined.caller(token).map(|caller| caller.node);
        assert_eq!(node("secret").as_deref(), Some("a"));
        assert_eq!(node("other").as_deref(), None);
        assert_eq!(node("").as_deref(), None);
        assert_eq!(joined.nodes(), ["a", "b"]);
    }

    #[test]
    fn bad_files_are_told_apart() {
        let bad = |text: &str| match Tokens::parse(text) {
            Ok(tokens) => panic!("{tokens:?}"),
            Err(error) => error,
        };
        assert!(matches!(bad("["), BadTokens::Json(_)));
        assert!(matches!(bad(r#"{"a": "12"}"#), BadTokens::Hash { node } if node == "a"));
        let both = format!(r#"{{"a": "{SECRET}", "b": "{}"}}"#, SECRET.to_uppercase());
        assert!(matches!(bad(&both), BadTokens::Shared { first, second } if first < second));
        assert!(matches!(
            bad(&format!(r#"{{"": "{SECRET}"}}"#)),
            BadTokens::NoName
        ));
    }

    #[tokio::test]
    async fn a_token_that_is_taken_away_is_noticed() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let path = dir.path().join("tokens.json");
        let write = |text: &str| std::fs::write(&path, text).unwrap_or_else(|e| panic!("{e}"));
        let mut file = TokenFile::open(path.clone());
        let authenticator = file.authenticator();
        let By::Join(joined) = &authenticator.by else {
            panic!("{authenticator:?}");
        };
        let caller = || joined.caller("secret");
        assert!(caller().is_none(), "the file is not there yet");
        write(&format!(r#"{{"a": "{SECRET}"}}"#));
        file.load(read(&path));
        let mut known = caller().unwrap_or_else(|| panic!("nobody has the token"));
        write("broken");
        file.load(read(&path));
        assert!(caller().is_some(), "the last good tokens hold");
        write("{}");
        file.load(read(&path));
        known.revoked().await;
        assert!(caller().is_none());
    }
}

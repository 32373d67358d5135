// SPDX-License-Identifier: Apache-2.0
//! The join tokens by which nodes prove who they are. Control knows their hashes only.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
};
use culvert_api::grpc::TOKEN_METADATA;
use tokio::sync::watch;
use tonic::{Request, Status, metadata::MetadataMap};

use crate::accept::Probation;

const RELOAD: Duration = Duration::from_secs(1);

type Hash = [u8; SHA256_OUTPUT_LEN];

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

/// Tells nodes by their tokens, as the file has them now.
#[derive(Clone, Debug)]
pub struct Authenticator {
    tokens: watch::Receiver<Arc<Tokens>>,
}

/// A node that showed its token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The node's name.
    pub node: String,
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

    /// The nodes that have a token.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
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

fn hash_of(token: &str) -> Hash {
    let digest = digest(&SHA256, token.as_bytes());
    let mut hash = Hash::default();
    hash.copy_from_slice(digest.as_ref());
    hash
}

// === impl Authenticator ===

impl Authenticator {
    /// The tokens as they are now.
    pub fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens.borrow())
    }

    /// Who calls; its connection may stay open from now on.
    pub fn admit<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.authenticate(request.metadata())?;
        if let Some(probation) = request.extensions().get::<Probation>() {
            probation.pass();
        }
        Ok(caller)
    }

    /// Who calls, by `authorization: Bearer <token>`.
    pub fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let token = bearer(metadata).ok_or_else(|| {
            Status::unauthenticated("expected `authorization: Bearer <join token>`")
        })?;
        let hash = hash_of(token);
        let node = self.tokens.borrow().node(&hash).map(str::to_owned);
        let node = node.ok_or_else(|| Status::unauthenticated("no node has this token"))?;
        Ok(Caller {
            node,
            hash,
            tokens: self.tokens.clone(),
        })
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get(TOKEN_METADATA)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

// === impl Caller ===

impl Caller {
    /// Waits until the token is no longer the node's.
    pub async fn revoked(&mut self) {
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
            tokens: self.tokens.subscribe(),
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

    fn metadata(value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        let value = value.parse().unwrap_or_else(|e| panic!("{e}"));
        metadata.insert(TOKEN_METADATA, value);
        metadata
    }

    #[test]
    fn a_token_names_its_node() {
        let tokens = Tokens::parse(&format!(
            r#"{{"a": "{SECRET}", "b": "{}"}}"#,
            "0".repeat(64)
        ));
        let sender = watch::Sender::new(Arc::new(tokens.unwrap_or_else(|e| panic!("{e}"))));
        let tokens = sender.subscribe();
        let authenticator = Authenticator { tokens };
        let node = |value| {
            authenticator
                .authenticate(&metadata(value))
                .map(|caller| caller.node)
        };
        assert_eq!(node("Bearer secret").ok().as_deref(), Some("a"));
        assert_eq!(node("bearer  secret ").ok().as_deref(), Some("a"));
        for wrong in ["Bearer other", "Basic secret", "secret", "Bearer "] {
            let code = node(wrong).map_err(|status| status.code());
            assert_eq!(code, Err(tonic::Code::Unauthenticated), "{wrong}");
        }
        assert!(authenticator.authenticate(&MetadataMap::new()).is_err());
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
        let authenticate = || authenticator.authenticate(&metadata("Bearer secret"));
        assert!(authenticate().is_err(), "the file is not there yet");
        write(&format!(r#"{{"a": "{SECRET}"}}"#));
        file.load(read(&path));
        let mut caller = authenticate().unwrap_or_else(|e| panic!("{e}"));
        write("broken");
        file.load(read(&path));
        assert!(authenticate().is_ok(), "the last good tokens hold");
        write("{}");
        file.load(read(&path));
        caller.revoked().await;
        assert!(authenticate().is_err());
    }
}

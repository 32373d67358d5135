// SPDX-License-Identifier: Apache-2.0
//! The join tokens of the nodes, and the trust anchors that they are given.

use std::{collections::BTreeMap, fs, io, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use super::{
    layout::{Layout, NodeId, PROXY_UID},
    node::give,
};

/// Makes a random token for each node that has none, and tells control their hashes.
pub fn issue(layout: &Layout, nodes: &[NodeId]) -> io::Result<()> {
    let mut hashes = BTreeMap::new();
    for node in nodes {
        let path = layout.node(*node).token();
        if !path.exists() {
            create(&path, &hex(&rand::random::<[u8; 32]>()))?;
        }
        let token = fs::read_to_string(&path)?;
        hashes.insert(node.to_string(), hash(&token));
    }
    let text = serde_json::to_string_pretty(&hashes)?;
    replace(&layout.join_tokens(), text.as_bytes())
}

/// Hands control's trust anchors to a node's proxy, if they changed. Says whether control has any.
pub fn hand_trust_anchors(layout: &Layout, node: NodeId) -> io::Result<bool> {
    let anchors = match fs::read(layout.control().join("trust-anchors.pem")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        anchors => anchors?,
    };
    let path = layout.node(node).trust_anchors();
    if fs::read(&path).ok().as_ref() != Some(&anchors) {
        replace(&path, &anchors)?;
    }
    Ok(true)
}

fn create(path: &Path, token: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let mut file = fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)?;
    file.write_all(token.as_bytes())?;
    give(path, PROXY_UID, 0o400)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

fn hash(token: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    hex(digest.as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256sum() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash("abc"), abc);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What a control plane of tests is configured with.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use culvert_api::identity::IdentityDomain;
use culvert_control::config::{self, Config};
use culvert_runtime::log::Format;
use tempfile::TempDir;

use super::MAX_SUBSCRIPTIONS;

pub fn domain() -> IdentityDomain {
    IdentityDomain {
        trust_domain: "cluster.local".into(),
        control_namespace: "culvert".into(),
    }
}

pub fn config(dir: &TempDir, lifetime: Duration) -> Config {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    Config {
        cluster: config::Cluster::Directory(config::Directory {
            manifests: dir.path().join("manifests"),
            join_tokens: tokens_path(dir),
            state_dir: dir.path().join("state"),
        }),
        listen: any,
        admin: any,
        domain: domain(),
        issuance_lifetime: lifetime,
        authority: None,
        max_subscriptions: MAX_SUBSCRIPTIONS,
        log: "info".into(),
        log_format: Format::Plain,
    }
}

pub(super) fn tokens_path(dir: &TempDir) -> PathBuf {
    dir.path().join("tokens.json")
}

pub(super) fn write_tokens(dir: &TempDir, nodes: &[&str]) {
    let token = |node: &&str| {
        let hash = digest(&SHA256, format!("token-{node}").as_bytes());
        ((*node).to_owned(), hex(hash.as_ref()))
    };
    let tokens: BTreeMap<_, _> = nodes.iter().map(token).collect();
    let text = serde_json::to_vec(&tokens).unwrap_or_else(|e| panic!("{e}"));
    fs::write(tokens_path(dir), text).unwrap_or_else(|e| panic!("{e}"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

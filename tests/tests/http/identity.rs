// SPDX-License-Identifier: Apache-2.0
//! `l5d-client-id` says who the client is, whatever the client says; other headers of proxies are
//! believed from nobody.

use std::path::Path;

use anyhow::ensure;
use culvert_tests::{
    programs::{CLIENT, PLAIN},
    sandbox::Sandbox,
};

use super::{Step, http1, said};

pub const STEPS: [Step; 2] = [
    ("a meshed client's identity is the one it proved", meshed),
    ("an unmeshed client has no identity", unmeshed),
];
/// In Linkerd's form.
const CLIENT_ID: &str = "client.default.serviceaccount.identity.culvert.cluster.local";

type Headers = Vec<(String, String)>;

/// The `l5d-*` headers that a server sees of a client that forges all of them.
fn seen(sandbox: &Sandbox, client: &str, server: &str) -> anyhow::Result<Headers> {
    let host = sandbox.ip(server)?.to_string();
    let said = said(sandbox, client, &http1(&host, "forged"))?;
    Ok(serde_json::from_str(&said)?)
}

fn meshed(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    for server in ["web", "open"] {
        let seen = seen(sandbox, CLIENT, server)?;
        let ids: Vec<_> = seen
            .iter()
            .filter(|(name, _)| name == "l5d-client-id")
            .map(|(_, id)| id.as_str())
            .collect();
        ensure!(ids == [CLIENT_ID], "{server} saw {seen:?}");
        let forged = seen.iter().any(|(name, _)| name == "l5d-proxy-error");
        ensure!(!forged, "{server} saw {seen:?}");
    }
    Ok(())
}

fn unmeshed(sandbox: &Sandbox, _: &Path) -> anyhow::Result<()> {
    let client = format!("{CLIENT}{PLAIN}");
    let seen = seen(sandbox, &client, "open")?;
    let believed = ["l5d-client-id", "l5d-proxy-error"];
    let forged = seen
        .iter()
        .any(|(name, _)| believed.contains(&name.as_str()));
    ensure!(!forged, "the server saw {seen:?}");
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0
//! `culvert inject` and `culvert uninject` as they are written.

use clap::{Args, ValueEnum};
use culvert_api::{
    annotations::{
        ACCESS_LOG, DEFAULT_INBOUND_POLICY, OPAQUE_PORTS, SKIP_INBOUND_PORTS, SKIP_OUTBOUND_PORTS,
    },
    policy::InboundPolicy,
};

/// `culvert inject`.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// Files or directories of manifests (*.yaml, *.yml, *.json), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub from: Vec<String>,
    /// Who may connect: all-unauthenticated, all-authenticated, audit or deny.
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    pub default_inbound_policy: Option<String>,
    /// Ports whose protocol is not looked for, e.g. 3306,8000-8100; in place of the default ones.
    #[arg(long, value_name = "PORTS")]
    pub opaque_ports: Option<String>,
    /// Ports of the pod whose connections don't go through the proxy.
    #[arg(long, value_name = "PORTS")]
    pub skip_inbound_ports: Option<String>,
    /// Ports of others, connections to which don't go through the proxy.
    #[arg(long, value_name = "PORTS")]
    pub skip_outbound_ports: Option<String>,
    /// Log each request that the pods serve.
    #[arg(long, value_name = "FORMAT")]
    pub access_log: Option<AccessLog>,
    /// For Linkerd's users: there is no sidecar, so nothing is there to be injected by hand. The same as without it.
    #[arg(long)]
    pub manual: bool,
    /// The namespace that Culvert is installed in, which is never meshed.
    #[arg(
        short = 'L',
        long,
        value_name = "NAMESPACE",
        default_value = "culvert",
        env = "CULVERT_NAMESPACE"
    )]
    pub culvert_namespace: String,
}

/// `culvert uninject`.
#[derive(Debug, Args)]
pub struct UninjectArgs {
    /// Take off all that `inject` can write, and linkerd.io/inject: also what somebody else wrote.
    #[arg(long)]
    pub all: bool,
    /// Files or directories of manifests (*.yaml, *.yml, *.json), or - for standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    pub from: Vec<String>,
}

/// How requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    /// The combined log format.
    Apache,
    /// One object a line.
    Json,
}

fn policy(name: &str) -> Result<String, String> {
    match InboundPolicy::named(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err("expected all-unauthenticated, all-authenticated, audit or deny".to_owned()),
    }
}

// === impl InjectArgs ===

impl InjectArgs {
    /// The annotations that are to be there.
    pub fn annotations(&self) -> Vec<(&'static str, String)> {
        let log = self.access_log.map(|format| match format {
            AccessLog::Apache => "apache".to_owned(),
            AccessLog::Json => "json".to_owned(),
        });
        let more = [
            (
                DEFAULT_INBOUND_POLICY[0],
                self.default_inbound_policy.clone(),
            ),
            (OPAQUE_PORTS[0], self.opaque_ports.clone()),
            (SKIP_INBOUND_PORTS[0], self.skip_inbound_ports.clone()),
            (SKIP_OUTBOUND_PORTS[0], self.skip_outbound_ports.clone()),
            (ACCESS_LOG[0], log),
        ];
        let more = more
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        std::iter::once((super::INJECT, "enabled".to_owned()))
            .chain(more)
            .collect()
    }
}

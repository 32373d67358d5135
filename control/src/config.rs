// SPDX-License-Identifier: Apache-2.0
//! Flags and environment, and what they mean.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use culvert_api::identity::IdentityDomain;
use culvert_runtime::{
    config::{LogArgs, Mistakes},
    log::Format,
};

use crate::{ca::GivenFiles, discovery::MAX_SUBSCRIPTIONS};

const MIN_LIFETIME: Duration = Duration::from_secs(5);

/// The control plane of Culvert: tells the node proxies where services are and who is meshed, and
/// certifies the identities of their workloads.
#[derive(Clone, Debug, Parser)]
#[command(name = "culvert-control", version)]
pub struct Args {
    /// Directory of Kubernetes manifests (*.yaml, *.yml, *.json) that is the cluster. Changes are
    /// picked up live; a broken file is refused and its last good content stays.
    #[arg(long, env = "CULVERT_MANIFESTS", value_name = "DIR")]
    manifests: PathBuf,
    /// Where to serve gRPC over TLS to the node proxies.
    #[arg(
        long,
        env = "CULVERT_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:8086"
    )]
    listen: String,
    /// Where to serve /metrics, /ready and /live.
    #[arg(
        long,
        env = "CULVERT_ADMIN",
        value_name = "ADDR",
        default_value = "0.0.0.0:9990"
    )]
    admin: String,
    /// Directory for the trust anchor, the issuer and what nodes reported. Made on the first run;
    /// `trust-anchors.pem` in it is public.
    #[arg(long, env = "CULVERT_STATE_DIR", value_name = "DIR")]
    state_dir: PathBuf,
    /// The SPIFFE trust domain of all identities.
    #[arg(
        long,
        env = "CULVERT_TRUST_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    trust_domain: String,
    /// The namespace of control; part of every identity's DNS name.
    #[arg(
        long,
        env = "CULVERT_NAMESPACE",
        value_name = "NAME",
        default_value = "culvert"
    )]
    namespace: String,
    /// JSON file {"<node>": "<SHA-256 of its join token, in hex>"}. Read again when it changes.
    #[arg(long, env = "CULVERT_JOIN_TOKENS", value_name = "FILE")]
    join_tokens: PathBuf,
    /// How long a workload's certificate lasts; proxies renew at 70 % of it.
    #[arg(
        long,
        env = "CULVERT_ISSUANCE_LIFETIME",
        value_name = "DURATION",
        default_value = "24h"
    )]
    issuance_lifetime: String,
    /// Your own trust anchors in PEM, instead of one of control's making.
    #[arg(long, env = "CULVERT_TRUST_ANCHORS", value_name = "FILE")]
    trust_anchors: Option<PathBuf>,
    /// Your own issuer's certificate in PEM; needs --trust-anchors and --issuer-key.
    #[arg(long, env = "CULVERT_ISSUER_CERTIFICATE", value_name = "FILE")]
    issuer_certificate: Option<PathBuf>,
    /// The key of your own issuer in PEM.
    #[arg(long, env = "CULVERT_ISSUER_KEY", value_name = "FILE")]
    issuer_key: Option<PathBuf>,
    /// How many destinations and policies one stream of a node may follow.
    #[arg(long, env = "CULVERT_MAX_SUBSCRIPTIONS", value_name = "N", default_value_t = MAX_SUBSCRIPTIONS)]
    max_subscriptions: usize,
    #[command(flatten)]
    log: LogArgs,
}

/// What control is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory that is the cluster.
    pub manifests: PathBuf,
    /// Where to serve gRPC.
    pub listen: SocketAddr,
    /// Where to serve metrics and readiness.
    pub admin: SocketAddr,
    /// Where to keep the authority and the reports.
    pub state_dir: PathBuf,
    /// The identities.
    pub domain: IdentityDomain,
    /// The hashes of the nodes' tokens.
    pub join_tokens: PathBuf,
    /// How long a leaf lasts.
    pub issuance_lifetime: Duration,
    /// The user's own authority, instead of one in the state directory.
    pub authority: Option<GivenFiles>,
    /// How many destinations and policies one stream of a node may follow.
    pub max_subscriptions: usize,
    /// What to log.
    pub log: String,
    /// How log lines look.
    pub log_format: Format,
}

// === impl Config ===

impl TryFrom<Args> for Config {
    type Error = Mistakes;

    fn try_from(args: Args) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let listen = mistakes.take(address("--listen", &args.listen));
        let admin = mistakes.take(address("--admin", &args.admin));
        let lifetime = mistakes.take(lifetime(&args.issuance_lifetime));
        let trust_domain = mistakes.take(dns("--trust-domain", &args.trust_domain));
        let namespace = mistakes.take(dns("--namespace", &args.namespace));
        let authority = mistakes.take(authority(&args));
        let (Some(listen), Some(admin), Some(issuance_lifetime), Some(authority)) =
            (listen, admin, lifetime, authority)
        else {
            return Err(mistakes);
        };
        let (Some(trust_domain), Some(control_namespace)) = (trust_domain, namespace) else {
            return Err(mistakes);
        };
        Ok(Self {
            manifests: args.manifests,
            listen,
            admin,
            state_dir: args.state_dir,
            domain: IdentityDomain {
                trust_domain,
                control_namespace,
            },
            join_tokens: args.join_tokens,
            issuance_lifetime,
            authority,
            max_subscriptions: args.max_subscriptions,
            log: args.log.log,
            log_format: args.log.log_format,
        })
    }
}

fn address(flag: &str, text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{flag}: got {text:?}, expected an address such as 0.0.0.0:8086"))
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let flag = "--issuance-lifetime";
    let lifetime = humantime::parse_duration(text)
        .map_err(|error| format!("{flag}: got {text:?}, expected such as 24h: {error}"))?;
    if lifetime < MIN_LIFETIME {
        return Err(format!("{flag}: got {text:?}, expected at least 5s"));
    }
    Ok(lifetime)
}

fn dns(flag: &str, text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = |label: &str| {
        let ends = !label.starts_with('-') && !label.ends_with('-');
        !label.is_empty() && label.len() <= 63 && ends && label.chars().all(allowed)
    };
    if text.len() <= 128 && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{flag}: got {text:?}, expected a DNS name in lower case of at most 128 letters"
    ))
}

fn authority(args: &Args) -> Result<Option<GivenFiles>, String> {
    match (
        &args.trust_anchors,
        &args.issuer_certificate,
        &args.issuer_key,
    ) {
        (None, None, None) => Ok(None),
        (Some(anchors), Some(issuer), Some(key)) => Ok(Some(GivenFiles {
            anchors: anchors.clone(),
            issuer: issuer.clone(),
            key: key.clone(),
        })),
        _ => Err(
            "--trust-anchors, --issuer-certificate and --issuer-key: give all three or none"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &[&str]) -> Result<Config, Mistakes> {
        let needed = [
            "control",
            "--manifests=m",
            "--state-dir=s",
            "--join-tokens=t",
        ];
        let args = Args::try_parse_from(needed.iter().chain(more));
        Config::try_from(args.unwrap_or_else(|e| panic!("{e}")))
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = config(&[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.listen.to_string(), "0.0.0.0:8086");
        assert_eq!(config.admin.to_string(), "0.0.0.0:9990");
        assert_eq!(config.issuance_lifetime, Duration::from_hours(24));
        assert_eq!(config.domain.trust_domain, "cluster.local");
        assert_eq!(config.domain.control_namespace, "culvert");
        assert_eq!(config.authority, None);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let mistakes = config(&[
            "--listen=here",
            "--admin=9990",
            "--issuance-lifetime=1s",
            "--trust-domain=Cluster",
            "--namespace=a b",
            "--issuer-key=k",
        ]);
        let Err(mistakes) = mistakes else {
            panic!("{mistakes:?}");
        };
        assert_eq!(mistakes.0.len(), 6, "{mistakes}");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Flags and environment, and what they mean.

mod cluster;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;
use culvert_api::identity::IdentityDomain;
use culvert_runtime::{
    config::{LogArgs, Mistakes},
    log::Format,
};

use self::cluster::ClusterArgs;
pub use self::cluster::{Cluster, Directory, Kubernetes};
use crate::{
    ca::{GivenFiles, IssuerFiles},
    discovery::MAX_SUBSCRIPTIONS,
};

const NO_ISSUER: &str =
    "--kubernetes: got no issuer, expected --issuer DIR: no replica makes its own";

const MIN_LIFETIME: Duration = Duration::from_secs(5);

/// The control plane of Culvert: tells the node proxies where services are and who is meshed, and
/// certifies the identities of their workloads.
#[derive(Clone, Debug, Parser)]
#[command(name = "culvert-control", version)]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
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
    /// Directory of a Secret with your own issuer: tls.crt, tls.key and ca.crt, as cert-manager writes
    /// them, or crt.pem and key.pem. Read again when it changes. Without --trust-anchors its ca.crt
    /// is taken.
    #[arg(long, env = "CULVERT_ISSUER", value_name = "DIR")]
    issuer: Option<PathBuf>,
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
    /// Whose control plane it is.
    pub cluster: Cluster,
    /// Where to serve gRPC.
    pub listen: SocketAddr,
    /// Where to serve metrics and readiness.
    pub admin: SocketAddr,
    /// The identities.
    pub domain: IdentityDomain,
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
        let cluster = mistakes.take(Cluster::of(args.cluster));
        if let (Some(Cluster::Kubernetes(_)), Some(None)) = (&cluster, &authority) {
            mistakes.0.push(NO_ISSUER.to_owned());
            return Err(mistakes);
        }
        let (Some(listen), Some(admin), Some(issuance_lifetime), Some(authority)) =
            (listen, admin, lifetime, authority)
        else {
            return Err(mistakes);
        };
        let (Some(trust_domain), Some(control_namespace), Some(cluster)) =
            (trust_domain, namespace, cluster)
        else {
            return Err(mistakes);
        };
        Ok(Self {
            cluster,
            listen,
            admin,
            domain: IdentityDomain {
                trust_domain,
                control_namespace,
            },
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
    let (certificate, key) = (&args.issuer_certificate, &args.issuer_key);
    let issuer = match (&args.issuer, certificate, key) {
        (Some(dir), None, None) => IssuerFiles::Dir(dir.clone()),
        (None, Some(certificate), Some(key)) if args.trust_anchors.is_some() => IssuerFiles::Pair {
            certificate: certificate.clone(),
            key: key.clone(),
        },
        (None, None, None) if args.trust_anchors.is_none() => return Ok(None),
        _ => {
            return Err(
                "--issuer DIR, or --trust-anchors, --issuer-certificate and --issuer-key together: \
                 give one of both, or none"
                    .to_owned(),
            );
        }
    };
    Ok(Some(GivenFiles {
        anchors: args.trust_anchors.clone(),
        issuer,
    }))
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

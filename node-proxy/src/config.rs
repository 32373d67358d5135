// SPDX-License-Identifier: Apache-2.0
//! The proxy's configuration: flags and environment as given ([`Args`]), checked and typed ([`Config`]).

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use culvert_api::identity::IdentityDomain;
use culvert_runtime::{config::Mistakes, log::Format};

/// The node proxy of the Culvert service mesh. It serves the TCP traffic of every enrolled pod of
/// its node with mutual TLS, over sockets that the agent makes in the pods' network namespaces.
///
/// Run it as a user of its own (2102 is the agent's default) without any capability.
#[derive(Clone, Debug, Parser)]
#[command(name = "culvert-proxy", version)]
pub struct Args {
    /// The name of this node, as the agent and control have it.
    #[arg(long, env = "CULVERT_NODE")]
    pub node: String,

    /// The agent's socket for its proxy.
    #[arg(
        long,
        env = "CULVERT_AGENT_SOCKET",
        default_value = "/run/culvert/proxy.sock"
    )]
    pub agent_socket: PathBuf,

    /// Where control answers gRPC, as HOST:PORT.
    #[arg(long, env = "CULVERT_CONTROL")]
    pub control: String,

    /// The namespace that control runs in. It is part of every identity's DNS name.
    #[arg(long, env = "CULVERT_CONTROL_NAMESPACE", default_value = "culvert")]
    pub control_namespace: String,

    /// The SPIFFE trust domain.
    #[arg(long, env = "CULVERT_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,

    /// The trust anchors in PEM. The file is read again when it changes.
    #[arg(long, env = "CULVERT_TRUST_ANCHORS")]
    pub trust_anchors: PathBuf,

    /// The bearer token that control knows this node by. The file is read for each call.
    #[arg(long, env = "CULVERT_TOKEN_FILE")]
    pub token_file: PathBuf,

    /// Where what control last said is kept for the next start. It holds no secret.
    #[arg(
        long,
        env = "CULVERT_STATE_DIR",
        default_value = "/var/lib/culvert/proxy"
    )]
    pub state_dir: PathBuf,

    /// Where /metrics, /ready and /live are served.
    #[arg(long, env = "CULVERT_ADMIN", default_value = "0.0.0.0:4191")]
    pub admin: String,

    /// Whether connections are logged on stdout.
    #[arg(long, env = "CULVERT_ACCESS_LOG", default_value = "off")]
    pub access_log: AccessLogFormat,

    /// How long dialling an endpoint may take.
    #[arg(long, env = "CULVERT_OUTBOUND_CONNECT_TIMEOUT", default_value = "1s")]
    pub outbound_connect_timeout: String,

    /// How long dialling the application may take.
    #[arg(long, env = "CULVERT_INBOUND_CONNECT_TIMEOUT", default_value = "1s")]
    pub inbound_connect_timeout: String,

    /// How long a TLS handshake may take, or a ClientHello that comes in pieces.
    #[arg(long, env = "CULVERT_HANDSHAKE_TIMEOUT", default_value = "10s")]
    pub handshake_timeout: String,

    /// How long one direction of a connection may stay open after the other has ended.
    #[arg(long, env = "CULVERT_HALF_OPEN_TIMEOUT", default_value = "5m")]
    pub half_open_timeout: String,

    /// How long a client may pause in the middle of an HTTP/1 request's body. Streams of HTTP/2 have no
    /// limit.
    #[arg(long, env = "CULVERT_BODY_TIMEOUT", default_value = "5m")]
    pub body_timeout: String,

    /// How long open connections may go on after SIGTERM. New ones wait for the next proxy.
    #[arg(long, env = "CULVERT_DRAIN", default_value = "5s")]
    pub drain: String,

    /// Threads that serve connections; 0 is one for each CPU.
    #[arg(long, env = "CULVERT_THREADS", default_value = "0")]
    pub threads: usize,

    /// Runs as root or with capabilities all the same. For tests only: such a proxy is no barrier.
    #[arg(long, env = "CULVERT_ALLOW_ROOT", hide = true)]
    pub allow_root: bool,

    /// What is logged: a level (error, warn, info, debug, trace) or a list of target=level.
    #[arg(long, env = "CULVERT_LOG", default_value = "info")]
    pub log: String,

    /// How it is logged.
    #[arg(long, env = "CULVERT_LOG_FORMAT", default_value = "plain")]
    pub log_format: Format,
}

/// Whether and how connections are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AccessLogFormat {
    /// Not at all.
    #[default]
    Off,
    /// One JSON object per connection, on stdout.
    Json,
}

/// The whole configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name of this node.
    pub node: String,
    /// The agent's socket.
    pub agent_socket: PathBuf,
    /// Where control answers, as `host:port`.
    pub control: String,
    /// Where identities live.
    pub domain: IdentityDomain,
    /// The file with the trust anchors.
    pub trust_anchors: PathBuf,
    /// The file with the node's token.
    pub token_file: PathBuf,
    /// The directory of the state file.
    pub state_dir: PathBuf,
    /// Where the admin server listens.
    pub admin: SocketAddr,
    /// What the data path is configured with.
    pub data_path: DataPathConfig,
    /// How long open connections may go on after SIGTERM.
    pub drain: Duration,
    /// Threads that serve connections; 0 is one for each CPU.
    pub threads: usize,
    /// Whether being root is accepted.
    pub allow_root: bool,
    /// What is logged.
    pub log: String,
    /// How it is logged.
    pub log_format: Format,
}

/// What the data path is configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPathConfig {
    /// How long dialling an endpoint may take.
    pub outbound_connect_timeout: Duration,
    /// How long dialling the application may take.
    pub inbound_connect_timeout: Duration,
    /// How long a TLS handshake, or a ClientHello in pieces, may take.
    pub handshake_timeout: Duration,
    /// How long one direction may stay open after the other has ended.
    pub half_open_timeout: Duration,
    /// How long a client may pause in the middle of an HTTP/1 request's body.
    pub body_timeout: Duration,
    /// Whether connections are logged.
    pub access_log: AccessLogFormat,
}

// === impl Config ===

impl TryFrom<Args> for Config {
    type Error = Mistakes;

    fn try_from(args: Args) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let config = Self {
            admin: admin(&args.admin, &mut mistakes),
            data_path: data_path(&args, &mut mistakes),
            drain: duration("drain", &args.drain, &mut mistakes),
            control: control(args.control, &mut mistakes),
            domain: IdentityDomain {
                trust_domain: name("trust-domain", args.trust_domain, &mut mistakes),
                control_namespace: name("control-namespace", args.control_namespace, &mut mistakes),
            },
            node: name("node", args.node, &mut mistakes),
            agent_socket: args.agent_socket,
            trust_anchors: args.trust_anchors,
            token_file: args.token_file,
            state_dir: args.state_dir,
            threads: args.threads,
            allow_root: args.allow_root,
            log: args.log,
            log_format: args.log_format,
        };
        match mistakes.is_empty() {
            true => Ok(config),
            false => Err(Mistakes(mistakes)),
        }
    }
}

fn data_path(args: &Args, mistakes: &mut Vec<String>) -> DataPathConfig {
    let mut duration = |flag, value: &String| duration(flag, value, mistakes);
    DataPathConfig {
        outbound_connect_timeout: duration(
            "outbound-connect-timeout",
            &args.outbound_connect_timeout,
        ),
        inbound_connect_timeout: duration("inbound-connect-timeout", &args.inbound_connect_timeout),
        handshake_timeout: duration("handshake-timeout", &args.handshake_timeout),
        half_open_timeout: duration("half-open-timeout", &args.half_open_timeout),
        body_timeout: duration("body-timeout", &args.body_timeout),
        access_log: args.access_log,
    }
}

fn admin(value: &str, mistakes: &mut Vec<String>) -> SocketAddr {
    value.parse().unwrap_or_else(|_| {
        mistakes.push(format!(
            "--admin: got {value:?}, expected an address as 0.0.0.0:4191"
        ));
        SocketAddr::from(([0, 0, 0, 0], 0))
    })
}

fn duration(flag: &str, value: &str, mistakes: &mut Vec<String>) -> Duration {
    humantime::parse_duration(value).unwrap_or_else(|_| {
        mistakes.push(format!(
            "--{flag}: got {value:?}, expected a time as 10s, 500ms or 5m"
        ));
        Duration::ZERO
    })
}

fn control(value: String, mistakes: &mut Vec<String>) -> String {
    let port = value.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if !port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0)) {
        let expected = "expected HOST:PORT as culvert-control.culvert.svc:8086";
        mistakes.push(format!("--control: got {value:?}, {expected}"));
    }
    value
}

/// What becomes part of DNS names and SPIFFE ids.
fn name(flag: &str, value: String, mistakes: &mut Vec<String>) -> String {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if value.is_empty() || !value.chars().all(fits) {
        let expected = "expected lower-case letters, digits, dashes and dots";
        mistakes.push(format!("--{flag}: got {value:?}, {expected}"));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &[&str]) -> Result<Config, Mistakes> {
        let needed = [
            "culvert-proxy",
            "--node",
            "a",
            "--trust-anchors",
            "x",
            "--token-file",
            "y",
        ];
        let args = Args::try_parse_from(needed.iter().chain(more));
        args.unwrap_or_else(|e| panic!("{e}")).try_into()
    }

    #[test]
    fn the_defaults_are_good() {
        let config = config(&["--control", "[::1]:8086"]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.data_path.half_open_timeout, Duration::from_secs(300));
        assert_eq!(config.admin.port(), 4191);
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let wrong = [
            "--control",
            "nowhere",
            "--admin",
            "x",
            "--drain",
            "soon",
            "--trust-domain",
            "A",
        ];
        let Err(Mistakes(mistakes)) = config(&wrong) else {
            panic!("the mistakes were not seen");
        };
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");
    }
}

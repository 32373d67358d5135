// SPDX-License-Identifier: Apache-2.0
//! The way to the API server.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt, retry::RetryPolicy},
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long the head of an answer may take. The API server itself gives up after a minute.
const ANSWER: Duration = Duration::from_secs(75);

/// After how long a connection on which nothing moves is asked whether its peer is still there,
/// and how often and long until it is taken for dead: a watch is silent for minutes.
const IDLE: Duration = Duration::from_secs(20);
const PROBE: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// Requests that an API server is too busy for (429, 503, 504) are sent again after 0.1 to 1 s, or
/// when it says.
const RETRIES: u32 = 3;
const RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the kubelet mounts for this Pod's ServiceAccount can't be used.
    #[error("could not use this Pod's ServiceAccount: expected automountServiceAccountToken")]
    InCluster(#[source] Box<InClusterError>),
    /// No kubeconfig was named, and this is not a Pod.
    #[error(
        "found no API server: expected to run in a Pod, a kubeconfig at $KUBECONFIG or \
         ~/.kube/config, or its path by --kubeconfig"
    )]
    Nowhere(#[source] Box<KubeconfigError>),
    /// A kubeconfig that was named can't be used.
    #[error("could not use the kubeconfig {}", path.display())]
    Kubeconfig {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// What the configuration says can't be done.
    #[error("could not make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    /// See [`RETRIES`].
    #[error("could not make a client of the API server: {0}")]
    Retry(#[from] kube::client::retry::InvalidBackoff),
}

/// A client of the API server that `kubeconfig` names; without one, of the cluster that this Pod
/// runs in, else of the one that `$KUBECONFIG` or `~/.kube/config` names.
///
/// Connects to nothing yet. A connection whose peer is gone is noticed within 40 s.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let config = match kubeconfig {
        Some(path) => named(path).await.map_err(|source| Error::Kubeconfig {
            path: path.to_owned(),
            source: Box::new(source),
        })?,
        None if in_cluster() => {
            Config::incluster().map_err(|error| Error::InCluster(Box::new(error)))?
        }
        None => Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .map_err(|error| Error::Nowhere(Box::new(error)))?,
    };
    with_config(&config)
}

async fn named(path: &Path) -> Result<Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

/// The kubelet sets this in every container.
fn in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// kube's own stack of layers, but for the time-outs, fewer and shorter retries, and no log of its
/// own: failures are told by who made the request.
pub(crate) fn with_config(config: &Config) -> Result<Client, Error> {
    let failed = |error| Error::Client(Box::new(error));
    // Fails only when there is one already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let connector = config
        .rustls_https_connector_with_connector(connector())
        .map_err(failed)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let retry = RetryPolicy::new(RETRY, LONGEST_RETRY, RETRIES, true)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(retry))
        .option_layer(config.auth_layer().map_err(failed)?)
        .layer(config.extra_headers_layer().map_err(failed)?)
        .map_err(BoxError::from)
        .timeout(ANSWER)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(IDLE));
    connector.set_keepalive_interval(Some(PROBE));
    connector.set_keepalive_retries(Some(PROBES));
    connector.set_tcp_user_timeout(Some(IDLE + PROBE * PROBES));
    connector
}

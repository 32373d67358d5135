// SPDX-License-Identifier: Apache-2.0
//! Which cluster a command means, and a client for it.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// Which cluster, and who asks.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// The kubeconfig file; $KUBECONFIG or ~/.kube/config by default, and in a pod its own account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; its current one by default.
    #[arg(long, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// The user to ask as.
    #[arg(long = "as", value_name = "USER")]
    pub impersonate: Option<String>,
    /// The groups to ask as; may be repeated.
    #[arg(long = "as-group", value_name = "GROUP", requires = "impersonate")]
    pub impersonate_groups: Vec<String>,
    /// How long the API server may take for an answer.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub request_timeout: Duration,
    /// The namespace that Culvert is installed in.
    #[arg(
        short = 'L',
        long,
        value_name = "NAMESPACE",
        default_value = "culvert",
        env = "CULVERT_NAMESPACE"
    )]
    pub culvert_namespace: String,
}

/// The cluster can't be asked, because nothing says which it is or who asks.
#[derive(Debug, thiserror::Error)]
#[error("no cluster to ask: {0}")]
pub struct NoCluster(String);

// === impl ClusterArgs ===

impl ClusterArgs {
    /// A client that gives up on a server that is away. It has not asked anything yet.
    pub async fn connect(&self) -> Result<Client, NoCluster> {
        let mut config = self
            .config()
            .await
            .map_err(|error| NoCluster(deep(&*error)))?;
        config.connect_timeout = Some(self.request_timeout);
        config.read_timeout = Some(self.request_timeout);
        config.write_timeout = Some(self.request_timeout);
        config.default_retry = false;
        if let Some(user) = &self.impersonate {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = Some(self.impersonate_groups.clone());
        }
        Client::try_from(config).map_err(|error| NoCluster(deep(&error)))
    }

    /// The cluster as people know it: its address, and the context of the kubeconfig that names it.
    pub async fn title(&self) -> Result<String, NoCluster> {
        let config = self
            .config()
            .await
            .map_err(|error| NoCluster(deep(&*error)))?;
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/');
        Ok(match self.context_name() {
            Some(context) => format!("cluster {server} (context {context})"),
            None => format!("cluster {server}"),
        })
    }

    /// A pod that asks by its own account has none.
    fn context_name(&self) -> Option<String> {
        let read = || match &self.kubeconfig {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        self.context
            .clone()
            .or_else(|| read().ok()?.current_context)
    }

    async fn config(&self) -> Result<Config, Box<dyn std::error::Error>> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        match &self.kubeconfig {
            Some(file) => {
                let read = Kubeconfig::read_from(file)?;
                Ok(Config::from_custom_kubeconfig(read, &options).await?)
            }
            None if self.context.is_some() => Ok(Config::from_kubeconfig(&options).await?),
            None => Ok(Config::infer().await?),
        }
    }
}

/// An error with its causes, each said once.
pub fn deep(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

// SPDX-License-Identifier: Apache-2.0
//! `culvert install` and `culvert upgrade`: the chart's manifests on standard output, for `kubectl apply -f -`.

mod args;
mod error;
mod given;
mod identity;
mod stored;

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use serde_json::Value;

pub use self::{
    args::{InstallArgs, UpgradeArgs},
    error::{Error, Result},
};
use crate::{
    certificates::Created,
    chart::{self, Manifest, Release, values},
    output,
};

/// Runs `culvert install`.
pub fn install(args: &InstallArgs) -> Result<()> {
    let given = given::given(&args.values)?;
    let kubernetes = match args.ignore_cluster {
        true => args.kube_version.clone(),
        false => block_on(fresh(args))?,
    };
    let mut values = over_defaults(&given);
    let namespace = &args.cluster.culvert_namespace;
    let created = identity::complete(&mut values, namespace)?;
    let text = chart::print(&manifests(
        &values,
        &given,
        &release(namespace, kubernetes),
    )?);
    keep_key(args.keep_trust_anchor_key.as_deref(), created.as_ref())?;
    output::print(&text)?;
    hint("install", namespace);
    Ok(())
}

/// Runs `culvert upgrade`.
pub fn upgrade(args: &UpgradeArgs) -> Result<()> {
    let text = block_on(upgraded(args))?;
    output::print(&text)?;
    hint("upgrade", &args.cluster.culvert_namespace);
    Ok(())
}

async fn upgraded(args: &UpgradeArgs) -> Result<String> {
    let client = args.cluster.connect().await?;
    let namespace = &args.cluster.culvert_namespace;
    let stored = stored::read(&client, namespace).await?;
    let stored = stored.ok_or_else(|| missing(namespace))?;
    let mut given = match args.reset_values {
        true => Value::Object(serde_json::Map::new()),
        false => stored.values,
    };
    values::merge(&mut given, &given::given(&args.values)?);
    let mut values = over_defaults(&given);
    let issuer = stored::keep_authority(&mut values, &client, namespace).await?;
    let release = release(namespace, kubernetes(&client).await?);
    eprintln!("Upgrading from {} to {} …", stored.version, chart::VERSION);
    let all = manifests(&values, &given, &release)?.into_iter();
    let changed: Vec<_> = all.filter_map(|manifest| issuer.of(manifest)).collect();
    Ok(chart::print(&changed))
}

fn missing(namespace: &str) -> Error {
    let config = stored::CONFIG;
    Error::State(format!(
        "there is no ConfigMap {namespace}/{config}: Culvert is not installed there (`culvert install`), or by Helm (`helm upgrade`)"
    ))
}

/// The version of a cluster that has no Culvert yet.
async fn fresh(args: &InstallArgs) -> Result<String> {
    let client = args.cluster.connect().await?;
    let namespace = &args.cluster.culvert_namespace;
    let control: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let found = control.get_opt("culvert-control").await;
    let found = found
        .map_err(|error| Error::cluster("ask the cluster (--ignore-cluster does not)", &error))?;
    if found.is_some() {
        // Another install would make another authority, and cut off all that the old one certified.
        return Err(Error::State(format!(
            "Culvert is installed in namespace {namespace} already: use `culvert upgrade`"
        )));
    }
    kubernetes(&client).await
}

async fn kubernetes(client: &Client) -> Result<String> {
    let info = client.apiserver_version().await;
    let info = info.map_err(|error| Error::cluster("ask for the version of Kubernetes", &error))?;
    Ok(info.git_version)
}

fn over_defaults(given: &Value) -> Value {
    let mut values = chart::defaults();
    values::merge(&mut values, given);
    values
}

fn release(namespace: &str, kubernetes: String) -> Release {
    Release {
        namespace: namespace.to_owned(),
        kubernetes,
    }
}

/// The chart's objects, and the user's values for the next upgrade.
fn manifests(values: &Value, given: &Value, release: &Release) -> Result<Vec<Manifest>> {
    let mut manifests = chart::render(values, release)?;
    let account = manifests
        .iter()
        .find(|manifest| manifest.kind() == "ServiceAccount");
    let labels = account.map_or(Value::Null, |account| {
        account.object["metadata"]["labels"].clone()
    });
    manifests.push(stored::config(given, &release.namespace, &labels));
    manifests.sort_by_key(Manifest::rank);
    Ok(manifests)
}

fn keep_key(path: Option<&Path>, created: Option<&Created>) -> Result<()> {
    let (path, created) = match (path, created) {
        (None, _) => return Ok(()),
        (Some(path), Some(created)) => (path, created),
        (Some(_), None) => {
            let message =
                "--keep-trust-anchor-key: trust anchors are given, none is made".to_owned();
            return Err(Error::Usage(message));
        }
    };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let written = file.and_then(|mut file| file.write_all(created.anchor_key_pem.as_bytes()));
    written.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

fn hint(command: &str, namespace: &str) {
    if io::stdout().is_terminal() {
        eprintln!(
            "\nThese are manifests; nothing was changed. To apply them:  culvert {command} | kubectl apply -f -"
        );
    } else {
        eprintln!("Rendered for namespace {namespace}. When it is applied:  culvert check");
    }
}

/// Runs what asks a cluster.
pub fn block_on<T>(asking: impl Future<Output = Result<T>>) -> Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build()?.block_on(asking)
}

#[cfg(test)]
mod tests;

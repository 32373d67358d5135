// SPDX-License-Identifier: Apache-2.0
//! What an installation keeps in the cluster for the next upgrade: the user's values in the ConfigMap `culvert-config`,
//! and the authority in a Secret and another ConfigMap. The values hold no key.

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{Error, Result, identity::authority};
use crate::chart::{self, Manifest, values, yaml};

/// The ConfigMap with the user's values.
pub const CONFIG: &str = "culvert-config";
const ISSUER: &str = "culvert-identity-issuer";
const TRUST_ROOTS: &str = "culvert-identity-trust-roots";

/// What an earlier install or upgrade was given.
#[derive(Debug)]
pub struct Stored {
    /// Its release.
    pub version: String,
    /// The user's values.
    pub values: Value,
}

/// The ConfigMap for `given`, labelled as the other objects are.
pub fn config(given: &Value, namespace: &str, labels: &Value) -> Manifest {
    let mut given = given.clone();
    if let Some(identity) = given.get_mut("identity").and_then(Value::as_object_mut) {
        identity.remove("issuer");
        identity.remove("trustAnchorsPEM");
    }
    Manifest::of(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG, "namespace": namespace, "labels": labels},
        "data": {"version": chart::VERSION, "values": format!("{}\n", yaml::write(&given))},
    }))
}

/// Reads the ConfigMap; none if there is none.
pub async fn read(client: &Client, namespace: &str) -> Result<Option<Stored>> {
    let found = find::<ConfigMap>(client, namespace, CONFIG).await?;
    found.map(|config| stored(&config, namespace)).transpose()
}

fn stored(config: &ConfigMap, namespace: &str) -> Result<Stored> {
    let data = config.data.as_ref();
    let text = |key: &str| {
        data.and_then(|data| data.get(key))
            .map_or("", String::as_str)
    };
    let values = yaml::read(text("values"));
    let values =
        values.map_err(|m| Error::State(format!("ConfigMap {namespace}/{CONFIG}, values: {m}")))?;
    Ok(Stored {
        version: text("version").to_owned(),
        values: if values.is_null() { json!({}) } else { values },
    })
}

/// What becomes of the issuer's Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// It is what it was: to write it again would print its key, and take back a rotation that comes in between.
    Unchanged,
    /// Another is given. The type of the Secret that is there can't be changed.
    Given(Option<String>),
}

/// Puts the cluster's authority into the values, as far as it is neither given nor kept by others.
pub async fn keep_authority(
    values: &mut Value,
    client: &Client,
    namespace: &str,
) -> Result<Issuer> {
    let has = |path: &str| {
        values
            .pointer(path)
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty())
    };
    let others = |path: &str| values.pointer(path) == Some(&Value::Bool(true));
    let is_given = has("/identity/issuer/keyPEM");
    if !is_given && !others("/identity/external/issuer") {
        let (certificate, key) = issuer(client, namespace).await?;
        let mut kept = authority("", &certificate, &key);
        if let Some(identity) = kept["identity"].as_object_mut() {
            identity.remove("trustAnchorsPEM");
        }
        values::merge(values, &kept);
    }
    let has = |path: &str| {
        values
            .pointer(path)
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty())
    };
    let others = |path: &str| values.pointer(path) == Some(&Value::Bool(true));
    if !has("/identity/trustAnchorsPEM") && !others("/identity/external/trustRoots") {
        let anchors = trust_roots(client, namespace).await?;
        values::merge(values, &json!({"identity": {"trustAnchorsPEM": anchors}}));
    }
    if !is_given {
        return Ok(Issuer::Unchanged);
    }
    let secret = find::<Secret>(client, namespace, ISSUER).await?;
    Ok(Issuer::Given(secret.and_then(|secret| secret.type_)))
}

// === impl Issuer ===

impl Issuer {
    /// What is to be applied of the chart's Secret. Control takes `tls.crt` and `tls.key` out of a Secret of any type.
    pub fn of(&self, manifest: Manifest) -> Option<Manifest> {
        if manifest.kind() != "Secret" || manifest.object["metadata"]["name"] != ISSUER {
            return Some(manifest);
        }
        match self {
            Self::Unchanged => None,
            Self::Given(Some(found)) if manifest.object["type"] != found.as_str() => {
                let mut object = manifest.object;
                object["type"] = found.as_str().into();
                Some(Manifest::of(object))
            }
            Self::Given(_) => Some(manifest),
        }
    }
}

async fn issuer(client: &Client, namespace: &str) -> Result<(String, String)> {
    let secret = find::<Secret>(client, namespace, ISSUER).await?;
    let secret = secret.ok_or_else(|| lost("Secret", namespace, ISSUER))?;
    let data = secret.data.unwrap_or_default();
    let text = |keys: [&str; 2]| {
        let found = keys.iter().find_map(|key| data.get(*key));
        found.and_then(|ByteString(bytes)| String::from_utf8(bytes.clone()).ok())
    };
    let pair = text(["tls.crt", "crt.pem"]).zip(text(["tls.key", "key.pem"]));
    pair.ok_or_else(|| {
        Error::State(format!(
            "Secret {namespace}/{ISSUER}: expected tls.crt and tls.key, or crt.pem and key.pem"
        ))
    })
}

async fn trust_roots(client: &Client, namespace: &str) -> Result<String> {
    let roots = find::<ConfigMap>(client, namespace, TRUST_ROOTS).await?;
    let data = roots.and_then(|roots| roots.data);
    let bundle = data.and_then(|mut data| data.remove("ca-bundle.crt"));
    bundle.ok_or_else(|| lost("ConfigMap", namespace, TRUST_ROOTS))
}

/// A new authority would cut off every workload that is certified by the old one, so none is made.
fn lost(kind: &str, namespace: &str, name: &str) -> Error {
    Error::State(format!(
        "{kind} {namespace}/{name} is gone or empty: restore it, or give trust anchors and an issuer (--identity-…-file)"
    ))
}

async fn find<K>(client: &Client, namespace: &str, name: &str) -> Result<Option<K>>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await;
    found.map_err(|error| Error::cluster(format!("read {namespace}/{name}"), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_without_keys() -> anyhow::Result<()> {
        let mut given = authority("ANCHOR", "CERT", "KEY");
        values::merge(
            &mut given,
            &json!({"identity": {"trustDomain": "a.b"}, "proxy": {"surge": false, "args": ["--x: y"]}}),
        );
        let manifest = config(&given, "culvert", &json!({"a": "b"}));
        for secret in ["ANCHOR", "CERT", "KEY"] {
            assert!(!manifest.text.contains(secret), "{secret}");
        }
        let config: ConfigMap = serde_json::from_value(manifest.object)?;
        let stored = stored(&config, "culvert")?;
        assert_eq!(stored.version, chart::VERSION);
        assert_eq!(
            stored.values,
            json!({"identity": {"trustDomain": "a.b"}, "proxy": {"surge": false, "args": ["--x: y"]}})
        );
        Ok(())
    }
}

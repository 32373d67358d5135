// SPDX-License-Identifier: Apache-2.0
//! What control signs, and for whom: it is asked as a proxy that was taken over asks.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use culvert_api::grpc::{
    TOKEN_METADATA,
    v1::{CertifyRequest, identity_client::IdentityClient},
};
use culvert_tests::cluster::{
    Cluster,
    pods::{CULVERT, Pod},
};
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use tonic::{
    Code, Request, Status,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

const NAME: &str = "culvert-control.culvert.serviceaccount.identity.culvert.cluster.local";
const AUDIENCE: &str = "culvert.io/control";
const PATIENCE: Duration = Duration::from_secs(20);

pub fn stolen(cluster: &Cluster) -> anyhow::Result<()> {
    let proxy = cluster.proxy(1)?;
    let token = token(cluster, "culvert-proxy", AUDIENCE, Some(&proxy))?;
    let (own, other) = (
        cluster.ready("shop", "app=client")?,
        cluster.ready("shop", "app=vault")?,
    );
    ensure!((own.node, other.node) == (1, 2), "the pods are elsewhere");
    let ask = |token: &str, pod: &Pod, id: &str| certify(cluster, token, pod.uid(), id);
    // The control of the test: what it may have, it gets.
    ask(&token, &own, "shop/sa/client")?.map_err(|status| anyhow::anyhow!("its own: {status}"))?;
    let refused = [
        (
            "a pod of another node",
            ask(&token, &other, "shop/sa/vault")?,
        ),
        (
            "its own pod as another",
            ask(&token, &own, "shop/sa/vault")?,
        ),
        (
            "a pod that is not there",
            certify(
                cluster,
                &token,
                "00000000-0000-4000-8000-000000000000",
                "shop/sa/client",
            )?,
        ),
        (
            "control's own identity",
            ask(
                &token,
                &cluster.pod(CULVERT, "culvert.io/component=control")?,
                "culvert/sa/culvert-control",
            )?,
        ),
    ];
    for (what, answer) in refused {
        let code = answer.as_ref().err().map(Status::code);
        ensure!(
            matches!(code, Some(Code::PermissionDenied | Code::InvalidArgument)),
            "{what}: {answer:?}"
        );
    }
    let tokens = [
        (
            "of another audience",
            self::token(cluster, "culvert-proxy", "other", Some(&proxy))?,
        ),
        (
            "of no pod",
            self::token(cluster, "culvert-proxy", AUDIENCE, None)?,
        ),
        (
            "of another ServiceAccount",
            self::token(cluster, "culvert-agent", AUDIENCE, Some(&cluster.agent(1)?))?,
        ),
        ("that is none", "nonsense".to_owned()),
    ];
    for (what, token) in tokens {
        let answer = ask(&token, &own, "shop/sa/client")?;
        let code = answer.as_ref().err().map(Status::code);
        ensure!(
            matches!(code, Some(Code::Unauthenticated | Code::PermissionDenied)),
            "a token {what}: {answer:?}"
        );
    }
    Ok(())
}

/// A token as the kubelet asks for it.
fn token(
    cluster: &Cluster,
    account: &str,
    audience: &str,
    pod: Option<&Pod>,
) -> anyhow::Result<String> {
    let bound = pod
        .map(|pod| json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid()}));
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound},
    });
    let path = format!("/api/v1/namespaces/{CULVERT}/serviceaccounts/{account}/token");
    let line = format!("kubectl create --raw {path} -f - <<< '{request}'");
    let answer: Value = cluster.shell(&line)?.json()?;
    Ok(answer["status"]["token"]
        .as_str()
        .context("no token")?
        .to_owned())
}

fn certify(
    cluster: &Cluster,
    token: &str,
    uid: &str,
    id: &str,
) -> anyhow::Result<Result<(), Status>> {
    let control = cluster.pod(CULVERT, "culvert.io/component=control")?;
    let at = SocketAddr::new(control.ip, 8086);
    let roots = cluster.get(&["-n", CULVERT, "configmap", "culvert-identity-trust-roots"])?;
    let roots = roots["data"]["ca-bundle.crt"]
        .as_str()
        .context("no trust roots")?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(roots))
        .domain_name(NAME);
    let endpoint = Endpoint::from_shared(format!("https://{at}"))?
        .timeout(PATIENCE)
        .tls_config(tls)?;
    let mut request = Request::new(CertifyRequest {
        pod_uid: uid.to_owned(),
        csr: csr(id)?,
    });
    request
        .metadata_mut()
        .insert(TOKEN_METADATA, format!("Bearer {token}").parse()?);
    cluster.outside().run(move || {
        let tasks = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        tasks.block_on(async {
            let channel = endpoint
                .connect()
                .await
                .context("control does not answer")?;
            let answer = IdentityClient::new(channel).certify(request).await;
            Ok(
                answer.and_then(|answer| match answer.into_inner().chain.is_empty() {
                    true => Err(Status::unknown("no certificate")),
                    false => Ok(()),
                }),
            )
        })
    })
}

fn csr(id: &str) -> anyhow::Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://cluster.local/ns/{id}");
    params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    Ok(params
        .serialize_request(&KeyPair::generate()?)?
        .der()
        .to_vec())
}

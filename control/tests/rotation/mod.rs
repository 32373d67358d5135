// SPDX-License-Identifier: Apache-2.0
//! A new issuer under another anchor, while nodes are there.

use culvert_api::grpc::v1::{Issuer, watch_response::Kind};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use crate::cluster::{self, Cluster, account_pod, request};

/// An anchor, an issuer below it, and the issuer's key, in PEM.
fn authority() -> Result<[String; 3], rcgen::Error> {
    let (anchor_key, issuer_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let anchor = params("another root");
    let issuer = params("another issuer");
    let signer = rcgen::Issuer::from_params(&anchor, &anchor_key);
    Ok([
        anchor.self_signed(&anchor_key)?.pem(),
        issuer.signed_by(&issuer_key, &signer)?.pem(),
        issuer_key.serialize_pem(),
    ])
}

async fn signer(cluster: &Cluster) -> Vec<u8> {
    let certified = cluster.certify("n1", "uid-a", request(&[])).await;
    let certified = certified.unwrap_or_else(|e| panic!("{e}"));
    cluster::verify(cluster, &certified.chain);
    certified.chain[1].clone()
}

#[tokio::test]
async fn a_new_issuer_signs_and_is_told_while_streams_go_on() -> Result<(), rcgen::Error> {
    let cluster = Cluster::start().await;
    cluster.write("a.yaml", &account_pod("a", "n1", "10.0.0.1"));
    let mut node = cluster.watch("n1").await;
    let (old_signer, old_serving) = (signer(&cluster).await, cluster.serving_certificate().await);
    let old = String::from_utf8_lossy(&cluster.anchors()).into_owned();
    let [anchor, issuer, key] = authority()?;
    cluster.write_state("trust-anchors.pem", &format!("{old}{anchor}"));
    cluster
        .until_metric(r#"culvert_control_authority_reads_total{result="updated"} 1"#)
        .await;
    node.nothing_within(std::time::Duration::from_millis(100))
        .await;
    cluster.write_state("issuer.crt", &issuer);
    cluster.write_state("issuer.key", &key);
    let told = node.next().await;
    assert!(
        matches!(&told, Kind::Issuer(Issuer { fingerprint }) if fingerprint.len() == 32),
        "{told:?}"
    );
    assert_ne!(signer(&cluster).await, old_signer);
    cluster::eventually(async || cluster.serving_certificate().await != old_serving).await;
    cluster.write_state("trust-anchors.pem", &anchor);
    cluster
        .until_metric(r#"culvert_control_authority_reads_total{result="updated"} 3"#)
        .await;
    assert_ne!(signer(&cluster).await, old_signer);
    node.subscribe(cluster::VIP).await;
    assert!(
        matches!(node.next().await, Kind::Destination(_)),
        "the stream goes on"
    );
    cluster.stop().await;
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0
//! Against a control plane in this process, which signs.

use std::os::fd::AsFd;

use culvert_api::agent::FromProxy;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::*;
use crate::{
    control_link::fake::{Authority, domain},
    fixture::{Fixture, eventually, key},
};

fn identity() -> Identity {
    domain().identity("shop", "cart")
}

fn gathered(fixture: &Fixture, metric: &str) -> Vec<f64> {
    let families = fixture.registry.gather();
    let families = families.iter().filter(|family| family.name() == metric);
    let metrics = families.flat_map(|family| family.get_metric());
    metrics
        .map(|metric| metric.get_gauge().get_value() + metric.get_counter().get_value())
        .collect()
}

async fn kept(fixture: &mut Fixture) -> OwnedFd {
    match fixture.told_agent().await {
        ToAgent {
            message: FromProxy::Keep { identity: kept },
            fd: Some(fd),
        } => {
            assert_eq!(kept, identity());
            fd
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_first_connection_waits_for_the_certificate() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let identities = &fixture.proxy.identities;
    assert!(identities.credentials(&identity()).await.is_err());
    identities.hold(&identity(), &key());
    assert!(identities.credentials(&identity()).await.is_ok());
    assert_eq!(fixture.control.signed(), [key().uid.0]);
    let expiration = "control_identity_cert_expiration_timestamp_seconds";
    assert!(
        gathered(&fixture, expiration)
            .first()
            .is_some_and(|at| *at > 1e9)
    );
    identities.release(&identity(), &key());
    assert!(identities.credentials(&identity()).await.is_err());
    assert!(gathered(&fixture, expiration).is_empty());
    Ok(())
}

#[tokio::test]
async fn the_next_proxy_serves_with_the_kept_key_while_control_is_away() -> anyhow::Result<()> {
    let mut first = Fixture::start().await?;
    first.proxy.identities.hold(&identity(), &key());
    let sealed = kept(&mut first).await;
    let write = nix::unistd::write(sealed.as_fd(), b"x");
    assert_eq!(write, Err(nix::errno::Errno::EPERM));

    let mut second = Fixture::start().await?;
    second.control.stop().await;
    let anchors = second.control.dir.path().join("anchors.pem");
    std::fs::copy(first.control.dir.path().join("anchors.pem"), anchors)?;
    let identities = &second.proxy.identities;
    let own = identities.anchors().map(|anchors| anchors.pem.clone());
    eventually("the anchors are read", || {
        identities.anchors().map(|anchors| anchors.pem.clone()) != own
    })
    .await;
    identities.load(&identity(), sealed);
    assert!(identities.is_certified(&identity()));
    identities.hold(&identity(), &key());
    identities.forget_unused();
    assert!(identities.credentials(&identity()).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_stored_key_of_others_anchors_or_identity_is_refused() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    fixture.proxy.identities.hold(&identity(), &key());
    let sealed = kept(&mut fixture).await;
    let other = domain().identity("shop", "till");
    fixture.proxy.identities.load(&other, sealed.try_clone()?);
    let stranger = Fixture::start().await?;
    stranger.proxy.identities.load(&identity(), sealed);
    for (fixture, identity) in [(&fixture, &other), (&stranger, &identity())] {
        assert!(!fixture.proxy.identities.is_certified(identity));
        assert_eq!(
            gathered(fixture, "culvert_proxy_stored_keys_refused_total"),
            [1.0]
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_served_with() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture
        .control
        .sign_for(domain().identity("shop", "till"), Duration::from_secs(60));
    fixture.proxy.identities.hold(&identity(), &key());
    eventually("it was signed twice", || fixture.control.signed().len() > 1).await;
    assert!(!fixture.proxy.identities.is_certified(&identity()));
    fixture
        .control
        .sign_for(identity(), Duration::from_secs(60));
    assert!(
        fixture
            .proxy
            .identities
            .credentials(&identity())
            .await
            .is_ok()
    );
    Ok(())
}

#[tokio::test]
async fn an_expired_certificate_fails_closed() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.control.sign_for(identity(), Duration::from_secs(2));
    fixture.proxy.identities.hold(&identity(), &key());
    let identities = &fixture.proxy.identities;
    assert!(identities.credentials(&identity()).await.is_ok());
    let entry = identities.find(&identity());
    let expired = || {
        entry
            .as_ref()
            .is_some_and(|entry| renewal::left(entry).is_zero())
    };
    eventually("it expired", expired).await;
    let Err(expired) = identities.credentials(&identity()).await else {
        panic!("an expired certificate was served with");
    };
    assert_eq!(expired.reason, "the last one has expired");
    Ok(())
}

#[tokio::test]
async fn other_anchors_make_other_credentials_and_another_certificate() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let identities = &fixture.proxy.identities;
    identities.hold(&identity(), &key());
    let before = identities.credentials(&identity()).await?;
    let path = fixture.control.dir.path().join("anchors.pem");
    let own = std::fs::read_to_string(&path)?;
    let other = Authority::new()?.pem;
    std::fs::write(&path, format!("{own}{other}"))?;
    let now = || {
        identities
            .find(&identity())
            .and_then(|entry| entry.held.borrow().clone())
    };
    let credentials = || now().map(|held| held.credentials.clone());
    let changed = || credentials().is_some_and(|now| !Arc::ptr_eq(&now, &before));
    eventually("the credentials are new", changed).await;
    assert_eq!(fixture.control.signed().len(), 1);
    std::fs::write(&path, other)?;
    eventually("the certificate is asked for again", || {
        fixture.control.signed().len() > 1 || !gathered(&fixture, FAILURES).is_empty()
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn what_another_issuer_signed_is_renewed_soon_and_once() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let identities = &fixture.proxy.identities;
    identities.hold(&identity(), &key());
    let before = identities.credentials(&identity()).await?;
    let own = std::fs::read_to_string(fixture.control.dir.path().join("anchors.pem"))?;
    let own = CertificateDer::from_pem_slice(own.as_bytes())?;
    identities.signed_by(&material::fingerprint(&own));
    let issuers = "control_identity_cert_issuer_expiration_timestamp_seconds";
    assert_eq!(gathered(&fixture, issuers).len(), 1);
    identities.signed_by(b"too short to be one");
    identities.signed_by(&[1; 32]);
    let now = || {
        let entry = identities.find(&identity())?;
        let held = entry.held.borrow().clone();
        held.map(|held| held.credentials.clone())
    };
    let renewed = || now().is_some_and(|now| !Arc::ptr_eq(&now, &before));
    eventually("the certificate is renewed", renewed).await;
    assert_eq!(
        fixture.control.signed().len(),
        2,
        "and not for its own issuer's sake"
    );
    // Whoever signed: control says once that it is another.
    identities.signed_by(&[1; 32]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fixture.control.signed().len(), 2);
    Ok(())
}

const FAILURES: &str = "control_identity_cert_refreshes_total";

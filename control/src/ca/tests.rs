// SPDX-License-Identifier: Apache-2.0

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use rcgen::{BasicConstraints, IsCa, PKCS_ECDSA_P384_SHA384};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn domain() -> IdentityDomain {
    IdentityDomain {
        trust_domain: "cluster.local".into(),
        control_namespace: "culvert".into(),
    }
}

fn tempdir() -> TempDir {
    tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"))
}

fn opened(dir: &Path) -> Authority {
    open(dir, domain(), DAY).unwrap_or_else(|e| panic!("{e}"))
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap_or_else(|e| panic!("{e}"))
}

fn leaf(authority: &Authority) -> Leaf {
    let web = domain().identity("shop", "web");
    authority
        .certify(&key(), &web)
        .unwrap_or_else(|e| panic!("{e}"))
}

fn files(dir: &Path) -> GivenFiles {
    GivenFiles {
        anchors: dir.join("trust-anchors.pem"),
        issuer: dir.join("issuer.crt"),
        key: dir.join("issuer.key"),
    }
}

fn refused(files: &GivenFiles) -> String {
    match given(files, domain(), DAY) {
        Ok(authority) => panic!("{authority:?}"),
        Err(error) => error.to_string(),
    }
}

fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap_or_else(|e| panic!("{e}"));
}

fn request(key: &KeyPair, names: &[SanType]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    let request = params
        .serialize_request(key)
        .unwrap_or_else(|e| panic!("{e}"));
    request.der().to_vec()
}

#[test]
fn a_first_run_makes_an_authority_and_the_next_one_takes_it() {
    let dir = tempdir();
    let state = dir.path().join("state");
    let first = opened(&state);
    assert_eq!(first.anchors(), opened(&state).anchors());
    for name in ["anchor.key", "issuer.key"] {
        let mode = fs::metadata(state.join(name)).map(|file| file.permissions().mode() & 0o777);
        assert!(matches!(mode, Ok(0o600)), "{name}: {mode:?}");
    }
    let gone = fs::remove_file(state.join("issuer.key"));
    assert!(gone.is_ok());
    let error = open(&state, domain(), DAY)
        .map(|_| ())
        .map_err(|error| error.to_string());
    assert!(
        error
            .as_ref()
            .is_err_and(|text| text.contains("no issuer.key")),
        "{error:?}"
    );
}

#[test]
fn a_run_that_died_half_way_is_begun_anew() {
    let dir = tempdir();
    write(&dir.path().join("anchor.key"), "half");
    write(&dir.path().join("issuer.key.new"), "half");
    leaf(&opened(dir.path()));
}

#[test]
fn a_leaf_is_accepted_on_both_sides_and_names_its_identity() {
    let dir = tempdir();
    let authority = opened(dir.path());
    let leaf = leaf(&authority);
    let mut roots = RootCertStore::empty();
    roots
        .add(authority.anchors()[0].clone())
        .unwrap_or_else(|e| panic!("{e}"));
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
    let clients = clients.build().unwrap_or_else(|e| panic!("{e}"));
    let client = clients.verify_client_cert(&leaf.chain[0], &leaf.chain[1..], UnixTime::now());
    assert!(client.is_ok(), "{client:?}");
    let servers = WebPkiServerVerifier::builder_with_provider(roots, provider);
    let servers = servers.build().unwrap_or_else(|e| panic!("{e}"));
    let verify = |name: &'static str| {
        let name = ServerName::try_from(name).unwrap_or_else(|e| panic!("{e}"));
        servers.verify_server_cert(
            &leaf.chain[0],
            &leaf.chain[1..],
            &name,
            &[],
            UnixTime::now(),
        )
    };
    assert!(verify("web.shop.serviceaccount.identity.culvert.cluster.local").is_ok());
    assert!(verify("web.other.serviceaccount.identity.culvert.cluster.local").is_err());
}

#[test]
fn a_leaf_is_no_more_than_a_leaf() {
    let dir = tempdir();
    let authority = opened(dir.path());
    let leaf = leaf(&authority);
    let (_, parsed) = X509Certificate::from_der(&leaf.chain[0]).unwrap_or_else(|e| panic!("{e}"));
    assert!(!parsed.is_ca());
    let usage = parsed
        .key_usage()
        .ok()
        .flatten()
        .map(|usage| usage.value.flags);
    assert_eq!(usage, Some(1), "digitalSignature alone");
    let extended = parsed
        .extended_key_usage()
        .ok()
        .flatten()
        .map(|usage| usage.value);
    assert!(extended.is_some_and(|usage| usage.client_auth && usage.server_auth && !usage.any));
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names
        .map(|names| names.value.general_names.clone())
        .unwrap_or_default();
    assert_eq!(
        names,
        [
            GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web"),
            GeneralName::DNSName("web.shop.serviceaccount.identity.culvert.cluster.local"),
        ]
    );
    let life = leaf.not_after - leaf.not_before;
    assert_eq!(life.whole_seconds(), 24 * 3600 + 20);
    let (_, issuer) = X509Certificate::from_der(&leaf.chain[1]).unwrap_or_else(|e| panic!("{e}"));
    let constraints = issuer
        .basic_constraints()
        .ok()
        .flatten()
        .map(|found| found.value.clone());
    assert!(constraints.is_some_and(|found| found.ca && found.path_len_constraint == Some(0)));
}

#[test]
fn a_leaf_does_not_outlive_its_issuer() {
    let dir = tempdir();
    opened(dir.path());
    let years = Duration::from_hours(10_000 * 24);
    let authority = open(dir.path(), domain(), years).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(leaf(&authority).not_after, authority.issuer_ends());
}

#[test]
fn given_files_are_checked() {
    let (ours, other) = (tempdir(), tempdir());
    opened(ours.path());
    opened(other.path());
    let files = files(ours.path());
    assert!(given(&files, domain(), DAY).is_ok());
    let foreign = GivenFiles {
        anchors: other.path().join("trust-anchors.pem"),
        ..files.clone()
    };
    assert!(refused(&foreign).contains("does not lead to any of the trust anchors"));
    let foreign = GivenFiles {
        key: other.path().join("issuer.key"),
        ..files.clone()
    };
    assert!(refused(&foreign).contains("another certificate's"));
    let empty = ours.path().join("empty.pem");
    write(&empty, "");
    let text = refused(&GivenFiles {
        anchors: empty.clone(),
        ..files.clone()
    });
    assert!(
        text.contains("empty.pem") && text.contains("it has none"),
        "{text}"
    );
    let text = refused(&GivenFiles {
        key: empty,
        ..files.clone()
    });
    assert!(text.contains("empty.pem is no private key"), "{text}");
    let missing = GivenFiles {
        issuer: ours.path().join("missing"),
        ..files
    };
    assert!(refused(&missing).contains("missing: No such file"));
}

#[test]
fn an_issuer_that_is_no_ca_is_refused() {
    let dir = tempdir();
    opened(dir.path());
    let key = key();
    write(&dir.path().join("issuer.key"), &key.serialize_pem());
    let mut params = CertificateParams::default();
    let install = |params: &CertificateParams| {
        let issuer = params.self_signed(&key).unwrap_or_else(|e| panic!("{e}"));
        write(&dir.path().join("issuer.crt"), &issuer.pem());
        refused(&files(dir.path()))
    };
    assert!(install(&params).contains("CA:true"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    assert!(install(&params).contains("keyCertSign"));
    params.key_usages.clear();
    params.not_after = OffsetDateTime::now_utc() - DAY;
    assert!(install(&params).contains("ended at"));
}

#[test]
fn of_a_request_only_the_key_counts() {
    let dir = tempdir();
    let authority = opened(dir.path());
    let names = authority
        .names(&domain().identity("shop", "web"))
        .unwrap_or_else(|e| panic!("{e}"));
    let key = key();
    for asked in [&[][..], &names[..1], &names] {
        let public = public_key(&request(&key, asked), &names).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            public.subject_public_key_info(),
            key.subject_public_key_info()
        );
    }
}

#[test]
fn wrong_requests_are_told_apart() {
    let dir = tempdir();
    let authority = opened(dir.path());
    let names = authority
        .names(&domain().identity("shop", "web"))
        .unwrap_or_else(|e| panic!("{e}"));
    let other = authority
        .names(&domain().identity("shop", "db"))
        .unwrap_or_else(|e| panic!("{e}"));
    let refused = |der: &[u8]| match public_key(der, &names) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    };
    assert!(matches!(
        refused(&request(&key(), &other)),
        BadRequest::Name { .. }
    ));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(refused(&request(&p384, &[])), BadRequest::Key));
    let mut forged = request(&key(), &[]);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(refused(&forged), BadRequest::Malformed(_)));
    forged.truncate(20);
    assert!(matches!(refused(&forged), BadRequest::Malformed(_)));
    let mut longer = request(&key(), &[]);
    longer.push(0);
    assert!(matches!(refused(&longer), BadRequest::Malformed(_)));
    assert!(matches!(
        refused(&[0; 10_000]),
        BadRequest::TooLong { got: 10_000 }
    ));
}

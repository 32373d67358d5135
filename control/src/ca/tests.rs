// SPDX-License-Identifier: Apache-2.0

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use rcgen::{BasicConstraints, IsCa, PKCS_ECDSA_P384_SHA384};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;

pub(super) const DAY: Duration = Duration::from_hours(24);

pub(super) fn domain() -> IdentityDomain {
    IdentityDomain {
        trust_domain: "cluster.local".into(),
        control_namespace: "culvert".into(),
    }
}

pub(super) fn tempdir() -> TempDir {
    tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"))
}

fn given(files: &GivenFiles, lifetime: Duration) -> Result<Authority, Error> {
    Authority::new(files.read()?.parse()?, domain(), lifetime)
}

/// Makes an authority in a directory, or takes the one that is there.
pub(super) fn opened(dir: &Path) -> Authority {
    let files = kept(dir, &domain()).unwrap_or_else(|e| panic!("{e}"));
    given(&files, DAY).unwrap_or_else(|e| panic!("{e}"))
}

pub(super) fn key() -> KeyPair {
    KeyPair::generate().unwrap_or_else(|e| panic!("{e}"))
}

pub(super) fn leaf(authority: &Authority) -> Leaf {
    let web = domain().identity("shop", "web");
    authority
        .certify(&key(), &web)
        .unwrap_or_else(|e| panic!("{e}"))
}

pub(super) fn files(dir: &Path) -> GivenFiles {
    GivenFiles {
        anchors: Some(dir.join("trust-anchors.pem")),
        issuer: IssuerFiles::Pair {
            certificate: dir.join("issuer.crt"),
            key: dir.join("issuer.key"),
        },
    }
}

fn refused(files: &GivenFiles) -> String {
    match given(files, DAY) {
        Ok(authority) => panic!("{authority:?}"),
        Err(error) => error.to_string(),
    }
}

pub(super) fn write(path: &Path, content: &str) {
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
    let error = kept(&state, &domain())
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
    is_accepted_on_both_sides(&opened(dir.path()));
}

fn is_accepted_on_both_sides(authority: &Authority) {
    let leaf = leaf(authority);
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
    let authority = given(&files(dir.path()), years).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(leaf(&authority).not_after, authority.ends());
}

#[test]
fn given_files_are_checked() {
    let (ours, other) = (tempdir(), tempdir());
    opened(ours.path());
    opened(other.path());
    let with = |anchors: &Path, certificate: &Path, key: &Path| GivenFiles {
        anchors: Some(anchors.to_owned()),
        issuer: IssuerFiles::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        },
    };
    let of = |dir: &TempDir, name: &str| dir.path().join(name);
    let anchors = of(&ours, "trust-anchors.pem");
    let (issuer, key) = (of(&ours, "issuer.crt"), of(&ours, "issuer.key"));
    assert!(given(&with(&anchors, &issuer, &key), DAY).is_ok());
    let text = refused(&with(&of(&other, "trust-anchors.pem"), &issuer, &key));
    assert!(text.contains("does not lead to any of the trust anchors"));
    let text = refused(&with(&anchors, &issuer, &of(&other, "issuer.key")));
    assert!(text.contains("another certificate's"));
    let empty = of(&ours, "empty.pem");
    write(&empty, "");
    let text = refused(&with(&empty, &issuer, &key));
    assert!(
        text.contains("empty.pem") && text.contains("it has none"),
        "{text}"
    );
    let text = refused(&with(&anchors, &issuer, &empty));
    assert!(text.contains("empty.pem is no private key"), "{text}");
    let text = refused(&with(&anchors, &of(&ours, "missing"), &key));
    assert!(text.contains("missing: No such file"), "{text}");
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

#[test]
fn both_layouts_of_a_secret_are_read() {
    let (made, secret) = (tempdir(), tempdir());
    let issued = opened(made.path());
    let copy = |from: &str, to: &str| {
        let copied = fs::copy(made.path().join(from), secret.path().join(to));
        assert!(copied.is_ok(), "{copied:?}");
    };
    let mut files = GivenFiles {
        anchors: None,
        issuer: IssuerFiles::Dir(secret.path().to_owned()),
    };
    assert!(refused(&files).contains("neither tls.crt and tls.key"));
    copy("issuer.crt", "crt.pem");
    copy("issuer.key", "key.pem");
    assert!(refused(&files).contains("ca.crt: No such file"));
    files.anchors = Some(made.path().join("trust-anchors.pem"));
    let linkerd = given(&files, DAY).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(linkerd.issuer(), issued.issuer());
    for (from, to) in [
        ("issuer.crt", "tls.crt"),
        ("issuer.key", "tls.key"),
        ("trust-anchors.pem", "ca.crt"),
    ] {
        copy(from, to);
    }
    files.anchors = None;
    let cert_manager = given(&files, DAY).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(cert_manager.anchors(), issued.anchors());
}

/// `openssl ecparam -name prime256v1 -genkey -noout`: as Linkerd's CLI and step write keys, and
/// cert-manager by default.
const SEC1: &str = "\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIJqZeD/4g2hNSgBIRUoUgqNKm2cpPW5+MeP0vUcpsowNoAoGCCqGSM49
AwEHoUQDQgAEZqKrVZ8rPjU0YUXLbgL5vXGxe1rGg80nMQ4Fo01QNDFKPtKnsgLH
KeoNkEpurpExDYRplhK2LcC0ncC1ni9ylA==
-----END EC PRIVATE KEY-----
";

#[test]
fn a_key_of_the_older_form_is_read() {
    let dir = tempdir();
    let key = KeyPair::from_pem(SEC1).unwrap_or_else(|e| panic!("{e}"));
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap_or_else(|e| panic!("{e}"));
    write(&dir.path().join("ca.crt"), &root.pem());
    write(&dir.path().join("tls.crt"), &root.pem());
    write(&dir.path().join("tls.key"), SEC1);
    let files = GivenFiles {
        anchors: None,
        issuer: IssuerFiles::Dir(dir.path().to_owned()),
    };
    leaf(&given(&files, DAY).unwrap_or_else(|e| panic!("{e}")));
}

/// As `culvert install` makes them: constrained to the DNS names of the mesh's identities.
#[test]
fn an_authority_that_is_constrained_to_our_names_certifies_them() {
    let dir = tempdir();
    for (names, expected) in [
        ("identity.culvert.cluster.local", Ok(())),
        ("identity.other.cluster.local", Err(())),
    ] {
        let now = OffsetDateTime::now_utc();
        let constrained = rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName(names.into())],
            excluded_subtrees: Vec::new(),
        };
        let authority = made_with(now + 2 * DAY, now + DAY, Some(&constrained));
        install(dir.path(), &authority);
        let authority = given(&files(dir.path()), DAY);
        assert_eq!(
            authority.as_ref().map(drop).map_err(drop),
            expected,
            "{names}"
        );
        if let Ok(authority) = authority {
            is_accepted_on_both_sides(&authority);
        }
    }
}

/// An anchor and an issuer below it, which end when they are told to.
pub(super) fn made(anchor_ends: OffsetDateTime, issuer_ends: OffsetDateTime) -> [String; 3] {
    made_with(anchor_ends, issuer_ends, None)
}

fn made_with(
    anchor_ends: OffsetDateTime,
    issuer_ends: OffsetDateTime,
    names: Option<&rcgen::NameConstraints>,
) -> [String; 3] {
    let (anchor_key, issuer_key) = (key(), key());
    let params = |ends| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = OffsetDateTime::now_utc() - 2 * DAY;
        params.not_after = ends;
        params.use_authority_key_identifier_extension = true;
        params.name_constraints = names.cloned();
        let name = ::rand::random::<u64>().to_string();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params
    };
    let anchor = params(anchor_ends);
    let anchor_pem = anchor
        .self_signed(&anchor_key)
        .unwrap_or_else(|e| panic!("{e}"))
        .pem();
    let signer = Issuer::from_params(&anchor, &anchor_key);
    let issuer = params(issuer_ends).signed_by(&issuer_key, &signer);
    let issuer_pem = issuer.unwrap_or_else(|e| panic!("{e}")).pem();
    [anchor_pem, issuer_pem, issuer_key.serialize_pem()]
}

pub(super) fn install(dir: &Path, [anchors, issuer, key]: &[String; 3]) {
    write(&dir.join("trust-anchors.pem"), anchors);
    write(&dir.join("issuer.crt"), issuer);
    write(&dir.join("issuer.key"), key);
}

#[test]
fn no_leaf_outlives_the_anchor_and_nothing_is_signed_after_it() {
    let dir = tempdir();
    let now = OffsetDateTime::now_utc();
    let seconds = |time: OffsetDateTime| time.unix_timestamp();
    install(dir.path(), &made(now + DAY / 2, now + 10 * DAY));
    let authority = given(&files(dir.path()), DAY).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(seconds(leaf(&authority).not_after), seconds(now + DAY / 2));
    let [(_, anchor), (_, issuer)] = authority.expiring();
    assert_eq!(seconds(anchor.not_after), seconds(now + DAY / 2));
    assert_eq!(seconds(issuer.not_after), seconds(now + 10 * DAY));
    for (anchor, issuer) in [(now - DAY, now + DAY), (now + DAY, now - DAY)] {
        install(dir.path(), &made(anchor, issuer));
        let text = refused(&files(dir.path()));
        assert!(text.contains("ended at"), "{text}");
    }
}

#[test]
fn an_old_anchor_beside_the_one_that_vouches_does_no_harm() {
    let dir = tempdir();
    let now = OffsetDateTime::now_utc();
    let [old, ..] = made(now - DAY, now - DAY);
    let [new, issuer, key] = made(now + 10 * DAY, now + DAY);
    install(dir.path(), &[format!("{old}{new}"), issuer, key]);
    let authority = given(&files(dir.path()), DAY).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(authority.anchors().len(), 2);
    leaf(&authority);
}

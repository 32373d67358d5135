// SPDX-License-Identifier: Apache-2.0

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer as Signer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm, date_time_ymd,
};

use super::*;
use crate::check::{
    facts::{Reason, Refusal},
    report::Outcome,
};

/// A certificate with its key.
struct Made {
    pem: String,
    key: KeyPair,
    params: CertificateParams,
}

fn params(name: &str, until: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    params
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap_or_else(|e| panic!("{e}"))
}

fn anchor(name: &str, until: i32) -> Made {
    let (params, key) = (params(name, until), key(&PKCS_ECDSA_P256_SHA256));
    let made = params.self_signed(&key).unwrap_or_else(|e| panic!("{e}"));
    Made {
        pem: made.pem(),
        key,
        params,
    }
}

fn signed(by: &Made, params: CertificateParams, key: KeyPair) -> Made {
    let signer = Signer::from_params(&by.params, &by.key);
    let made = params
        .signed_by(&key, &signer)
        .unwrap_or_else(|e| panic!("{e}"));
    Made {
        pem: made.pem(),
        key,
        params,
    }
}

fn signed_issuer(by: &Made, until: i32) -> Made {
    signed(by, params("issuer", until), key(&PKCS_ECDSA_P256_SHA256))
}

fn judged(anchors: &[&Made], issuer: &Made, beside: Option<&Made>, at: &str) -> Vec<Check> {
    let anchors: String = anchors.iter().map(|made| made.pem.as_str()).collect();
    let given = Given {
        anchors: anchors.into_bytes(),
        issuer: issuer.pem.clone().into_bytes(),
        beside: beside.map(|made| made.pem.clone().into_bytes()),
    };
    let now = at.parse().unwrap_or_else(|e| panic!("{e}"));
    given.judged(now).unwrap_or_else(|e| panic!("{e}"))
}

/// What is not well, with its outcome.
fn troubles(checks: &[Check]) -> Vec<(&str, Outcome, &str)> {
    let bad = checks
        .iter()
        .filter(|check| check.outcome != Outcome::Success);
    bad.map(|check| {
        (
            check.description.as_str(),
            check.outcome,
            check.found[0].as_str(),
        )
    })
    .collect()
}

#[test]
fn a_good_pair_is_good() {
    let root = anchor("root", 2036);
    let issuer = signed_issuer(&root, 2030);
    let checks = judged(&[&root], &issuer, Some(&root), "2026-06-01T00:00:00Z");
    assert_eq!((checks.len(), troubles(&checks)), (8, vec![]));
}

#[test]
fn what_ends_within_60_days_is_a_warning_until_it_has_ended() {
    let root = anchor("root", 2036);
    let issuer = signed_issuer(&root, 2027);
    let at = |day: &str| judged(&[&root], &issuer, None, day);
    assert_eq!(troubles(&at("2026-11-02T00:00:00Z")), []);
    let checks = at("2026-11-03T00:00:00Z");
    let (what, outcome, found) = troubles(&checks)[0];
    assert_eq!(what, "issuer cert is valid for at least 60 days");
    assert_eq!(outcome, Outcome::Warning);
    assert!(found.starts_with("CN=issuer ends in 59 days"), "{found}");
    let checks = at("2027-01-02T00:00:00Z");
    let (what, outcome, found) = troubles(&checks)[0];
    assert_eq!(what, "issuer cert is within its validity period");
    assert_eq!((outcome, troubles(&checks).len()), (Outcome::Error, 1));
    assert!(found.starts_with("CN=issuer ended Jan  1"), "{found}");
}

#[test]
fn an_anchor_that_is_over_is_a_failure_only_if_it_is_the_last() {
    let (old, new) = (anchor("old", 2027), anchor("new", 2036));
    let issuer = signed_issuer(&new, 2030);
    let day = "2028-01-01T00:00:00Z";
    let checks = judged(&[&old, &new], &issuer, None, day);
    assert_eq!(troubles(&checks)[0].1, Outcome::Warning);
    let issuer = signed_issuer(&old, 2030);
    let checks = judged(&[&old], &issuer, None, day);
    assert_eq!(troubles(&checks)[0].1, Outcome::Error);
}

#[test]
fn an_issuer_of_another_anchor_is_refused_even_of_the_same_name() {
    let (root, impostor) = (anchor("root", 2036), anchor("root", 2036));
    let issuer = signed_issuer(&impostor, 2030);
    let checks = judged(&[&root], &issuer, Some(&impostor), "2026-06-01T00:00:00Z");
    let expected = [
        (
            "issuer cert is issued by the trust anchor",
            Outcome::Error,
            "no trust anchor is the CN=root that signed it",
        ),
        (
            "trust anchors hold the ca.crt of the issuer's Secret",
            Outcome::Warning,
            "CN=root is not among them",
        ),
    ];
    assert_eq!(troubles(&checks), expected);
}

#[test]
fn an_issuer_must_be_an_authority_with_a_usual_key() {
    let root = anchor("root", 2036);
    let mut leaf = params("leaf", 2030);
    leaf.is_ca = IsCa::ExplicitNoCa;
    let leaf = signed(&root, leaf, key(&PKCS_ED25519));
    let checks = judged(&[&root], &leaf, None, "2026-06-01T00:00:00Z");
    let expected = [
        (
            "issuer cert is using supported crypto algorithm",
            Outcome::Error,
            "CN=leaf is not",
        ),
        (
            "issuer cert is issued by the trust anchor",
            Outcome::Error,
            "CN=leaf is no certificate authority",
        ),
    ];
    assert_eq!(troubles(&checks), expected);
}

fn data(entries: &[(&str, &str)]) -> Answer<Secret> {
    let entries = entries.iter();
    let entries = entries.map(|(name, value)| ((*name).to_owned(), ByteString((*value).into())));
    Ok(Secret {
        data: Some(entries.collect()),
        ..Secret::default()
    })
}

#[test]
fn both_layouts_are_read_and_an_empty_key_is_none() {
    for [certificate, key, _] in LAYOUTS {
        let read = issuer(&data(&[(certificate, "c"), (key, "k"), ("ca.crt", "a")]));
        assert!(read.is_ok_and(|read| read == (b"c".to_vec(), Some(b"a".to_vec()))));
    }
    let found = |secret| issuer(&secret).err().map(|check| check.found.join(""));
    let none =
        "Secret culvert-identity-issuer has neither tls.crt and tls.key nor crt.pem and key.pem";
    assert_eq!(
        found(data(&[("tls.crt", "c"), ("tls.key", "")])).as_deref(),
        Some(none)
    );
    assert_eq!(found(data(&[])).as_deref(), Some(none));
}

#[test]
fn who_may_not_read_secrets_is_warned_only() {
    let forbidden = Refusal {
        asked: "get Secret".to_owned(),
        reason: Reason::Forbidden("no".to_owned()),
    };
    let check = issuer(&Err(forbidden)).err().map(|check| check.outcome);
    assert_eq!(check, Some(Outcome::Warning));
}

#[test]
fn what_is_no_certificate_is_named() {
    let now = Timestamp::UNIX_EPOCH;
    let given = |anchors: &str| Given {
        anchors: anchors.into(),
        issuer: b"x".to_vec(),
        beside: None,
    };
    let found = given("nothing").judged(now).err();
    assert_eq!(
        found.as_deref(),
        Some("the trust anchors: no certificate in it")
    );
    let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(given(text).judged(now).is_err());
}

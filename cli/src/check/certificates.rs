// SPDX-License-Identifier: Apache-2.0
//! The trust anchors and the issuer, as they are in the cluster. No key is read beyond whether
//! there is one.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    jiff::Timestamp,
};
use x509_parser::{certificate::X509Certificate, oid_registry, pem::Pem, public_key::PublicKey};

use super::{
    facts::{After, Answer},
    report::Check,
    unanswered,
};

/// The ConfigMap of the trust anchors.
pub const TRUST_ROOTS: &str = "culvert-identity-trust-roots";
/// The Secret of the issuer.
pub const ISSUER: &str = "culvert-identity-issuer";
const BUNDLE_KEY: &str = "ca-bundle.crt";

/// The keys of certificate, private key and anchors: kubernetes.io/tls, and Linkerd's own.
const LAYOUTS: [[&str; 3]; 2] = [
    ["tls.crt", "tls.key", "ca.crt"],
    ["crt.pem", "key.pem", "ca.crt"],
];

/// Less than this is a warning, in days.
const ENOUGH: i64 = 60;
const DAY: i64 = 24 * 60 * 60;

const ROTATE: &str = "make new ones and put them into the ConfigMap and the Secret: anchors first \
    (old and new together), then the issuer, then take the old anchor out; nothing restarts";

/// Where certificates came from, in PEM.
struct Given {
    anchors: Vec<u8>,
    issuer: Vec<u8>,
    /// The anchors that came with the issuer.
    beside: Option<Vec<u8>>,
}

/// The same, read.
struct Certificates<'a> {
    anchors: Vec<X509Certificate<'a>>,
    issuer: X509Certificate<'a>,
    beside: Vec<X509Certificate<'a>>,
}

/// All that concerns certificates.
pub fn checks(facts: &After) -> Vec<Check> {
    let description = "certificate config is valid";
    let anchors = match bundle(&facts.anchors) {
        Ok(anchors) => anchors,
        Err(check) => return vec![*check],
    };
    let (issuer, beside) = match issuer(&facts.issuer) {
        Ok(issuer) => issuer,
        Err(check) => return vec![*check],
    };
    let given = Given {
        anchors,
        issuer,
        beside,
    };
    match given.judged(facts.now) {
        Ok(mut checks) => {
            checks.insert(0, Check::good(description));
            checks
        }
        Err(found) => vec![Check::failed(description, vec![found], ROTATE)],
    }
}

/// The text of the trust anchors, or why there is none.
pub fn bundle(anchors: &Answer<ConfigMap>) -> Result<Vec<u8>, Box<Check>> {
    let description = "certificate config is valid";
    let map = anchors
        .as_ref()
        .map_err(|refusal| Box::new(unanswered(description, refusal)))?;
    let text = map.data.as_ref().and_then(|data| data.get(BUNDLE_KEY));
    text.map(|text| text.clone().into_bytes()).ok_or_else(|| {
        let found = format!("ConfigMap {TRUST_ROOTS} has no key {BUNDLE_KEY}");
        Box::new(Check::failed(description, vec![found], ROTATE))
    })
}

type Issuer = (Vec<u8>, Option<Vec<u8>>);

fn issuer(secret: &Answer<Secret>) -> Result<Issuer, Box<Check>> {
    let description = "certificate config is valid";
    let secret = secret.as_ref().map_err(|refusal| {
        let check = unanswered(description, refusal);
        // Who may not read Secrets may still be the one who looks at night.
        Box::new(match refusal.reason {
            super::facts::Reason::Forbidden(_) => check.at_most_warning(),
            _ => check,
        })
    })?;
    let none = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&none);
    of_layout(data).ok_or_else(|| {
        let found =
            format!("Secret {ISSUER} has neither tls.crt and tls.key nor crt.pem and key.pem");
        Box::new(Check::failed(description, vec![found], ROTATE))
    })
}

fn of_layout(data: &BTreeMap<String, ByteString>) -> Option<Issuer> {
    LAYOUTS.iter().find_map(|[certificate, key, anchors]| {
        data.get(*key).filter(|key| !key.0.is_empty())?;
        let issuer = data.get(*certificate)?.0.clone();
        Some((issuer, data.get(*anchors).map(|anchors| anchors.0.clone())))
    })
}

// === impl Given ===

impl Given {
    /// Each rule on what can be read, or what can't.
    fn judged(&self, now: Timestamp) -> Result<Vec<Check>, String> {
        let anchors = pems(&self.anchors, "the trust anchors")?;
        let issuer = pems(&self.issuer, "the issuer")?;
        let beside = match &self.beside {
            Some(beside) => pems(beside, "the issuer's ca.crt")?,
            None => Vec::new(),
        };
        let mut chain = parsed(&issuer, "the issuer")?;
        let certificates = Certificates {
            anchors: parsed(&anchors, "the trust anchors")?,
            issuer: chain.swap_remove(0),
            beside: parsed(&beside, "the issuer's ca.crt")?,
        };
        Ok(certificates.checks(now))
    }
}

fn pems(text: &[u8], of: &str) -> Result<Vec<Pem>, String> {
    let blocks: Result<Vec<_>, _> = Pem::iter_from_buffer(text).collect();
    let blocks = blocks.map_err(|error| format!("{of}: no PEM: {error}"))?;
    if blocks.is_empty() {
        return Err(format!("{of}: no certificate in it"));
    }
    Ok(blocks)
}

fn parsed<'a>(blocks: &'a [Pem], of: &str) -> Result<Vec<X509Certificate<'a>>, String> {
    let parsed = blocks.iter().map(|block| {
        let parsed = block.parse_x509();
        parsed.map_err(|error| format!("{of}: no certificate: {error}"))
    });
    parsed.collect()
}

// === impl Certificates ===

impl Certificates<'_> {
    fn checks(&self, now: Timestamp) -> Vec<Check> {
        let issuer = std::slice::from_ref(&self.issuer);
        vec![
            algorithms(
                &self.anchors,
                "trust anchors are using supported crypto algorithm",
            ),
            valid(
                &self.anchors,
                now,
                "trust anchors are within their validity period",
            ),
            lasting(
                &self.anchors,
                now,
                "trust anchors are valid for at least 60 days",
            ),
            algorithms(issuer, "issuer cert is using supported crypto algorithm"),
            valid(issuer, now, "issuer cert is within its validity period"),
            lasting(issuer, now, "issuer cert is valid for at least 60 days"),
            self.chained(),
            self.same_roots(),
        ]
    }

    fn chained(&self) -> Check {
        let issuer = &self.issuer;
        let description = "issuer cert is issued by the trust anchor";
        let mut found = Vec::new();
        if !issuer.is_ca() {
            found.push(format!("{} is no certificate authority", issuer.subject()));
        }
        let signs = |anchor: &X509Certificate<'_>| {
            anchor.subject() == issuer.issuer()
                && issuer.verify_signature(Some(anchor.public_key())).is_ok()
        };
        if !self.anchors.iter().any(signs) {
            let name = issuer.issuer();
            found.push(format!("no trust anchor is the {name} that signed it"));
        }
        Check::unless(
            found,
            description,
            format!("put the issuer's anchor into ConfigMap {TRUST_ROOTS}, or the old issuer back"),
        )
    }

    fn same_roots(&self) -> Check {
        let trusted = |root: &&X509Certificate<'_>| {
            self.anchors
                .iter()
                .any(|anchor| anchor.as_raw() == root.as_raw())
        };
        let strangers = self.beside.iter().filter(|root| !trusted(root));
        let found = strangers.map(|root| format!("{} is not among them", root.subject()));
        Check::unless(
            found.collect(),
            "trust anchors hold the ca.crt of the issuer's Secret",
            format!("add it to ConfigMap {TRUST_ROOTS} before an issuer that it signed is used"),
        )
        .at_most_warning()
    }
}

fn algorithms(certificates: &[X509Certificate<'_>], description: &str) -> Check {
    let found = certificates.iter().filter_map(|certificate| {
        let key = certificate.public_key();
        let supported = match key.parsed() {
            Ok(PublicKey::EC(_)) => {
                let curve = key.algorithm.parameters.as_ref();
                let curve = curve.and_then(|curve| curve.as_oid().ok());
                curve.is_some_and(|curve| {
                    [oid_registry::OID_EC_P256, oid_registry::OID_NIST_EC_P384].contains(&curve)
                })
            }
            Ok(PublicKey::RSA(key)) => (2048..=4096).contains(&key.key_size()),
            _ => false,
        };
        (!supported).then(|| format!("{} is not", certificate.subject()))
    });
    Check::unless(
        found.collect(),
        description,
        "use ECDSA with P-256 (or P-384), or RSA with 2048 to 4096 bits",
    )
}

fn valid(certificates: &[X509Certificate<'_>], now: Timestamp, description: &str) -> Check {
    let now = now.as_second();
    let found = certificates.iter().filter_map(|certificate| {
        let validity = certificate.validity();
        let name = certificate.subject();
        if now < validity.not_before.timestamp() {
            return Some(format!("{name} begins {}", validity.not_before));
        }
        let ended = validity.not_after.timestamp() < now;
        ended.then(|| format!("{name} ended {}", validity.not_after))
    });
    let found: Vec<_> = found.collect();
    // Of several anchors, those that are over are waste.
    let some_left = found.len() < certificates.len();
    let check = Check::unless(found, description, ROTATE);
    if some_left {
        check.at_most_warning()
    } else {
        check
    }
}

fn lasting(certificates: &[X509Certificate<'_>], now: Timestamp, description: &str) -> Check {
    let found = certificates.iter().filter_map(|certificate| {
        let end = certificate.validity().not_after;
        let days = (end.timestamp() - now.as_second()).div_euclid(DAY);
        let soon = (0..ENOUGH).contains(&days);
        soon.then(|| format!("{} ends in {days} days, {end}", certificate.subject()))
    });
    Check::unless(found.collect(), description, ROTATE).at_most_warning()
}

#[cfg(test)]
mod tests;

// SPDX-License-Identifier: Apache-2.0
//! The authority that `culvert install` makes: a trust anchor, and an issuer below it.

use culvert_api::identity::IdentityDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, SerialNumber,
};
use time::{Duration, OffsetDateTime};

/// How long the anchor lasts, of which nodes keep a copy.
const ANCHOR_LIFETIME: Duration = Duration::days(3650);
/// How long the issuer lasts, which is replaced without anybody noticing.
const ISSUER_LIFETIME: Duration = Duration::days(365);
/// Clocks behind ours believe it from the first moment.
const CLOCK_SKEW: Duration = Duration::minutes(10);

/// An authority, in PEM.
pub struct Created {
    /// The trust anchor.
    pub anchor_pem: String,
    /// Its key, for the next issuer. Nobody needs it in the cluster.
    pub anchor_key_pem: String,
    /// The issuer.
    pub issuer_pem: String,
    /// Its key.
    pub issuer_key_pem: String,
}

/// A certificate can't be made.
pub type Error = rcgen::Error;

/// Makes an authority for the identities of a domain: P-256, the anchor for ten years, the issuer for one.
pub fn create(domain: &IdentityDomain) -> Result<Created, Error> {
    let (anchor_key, issuer_key) = (KeyPair::generate()?, KeyPair::generate()?);
    let unconstrained = IsCa::Ca(BasicConstraints::Unconstrained);
    let anchor = params(domain, "root", unconstrained, ANCHOR_LIFETIME);
    let last = IsCa::Ca(BasicConstraints::Constrained(0));
    let issuer = params(domain, "identity", last, ISSUER_LIFETIME);
    let signer = Issuer::from_params(&anchor, &anchor_key);
    Ok(Created {
        anchor_pem: anchor.self_signed(&anchor_key)?.pem(),
        issuer_pem: issuer.signed_by(&issuer_key, &signer)?.pem(),
        anchor_key_pem: anchor_key.serialize_pem(),
        issuer_key_pem: issuer_key.serialize_pem(),
    })
}

fn params(
    domain: &IdentityDomain,
    role: &str,
    is_ca: IsCa,
    lifetime: Duration,
) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + lifetime;
    params.serial_number = Some(serial());
    params.distinguished_name.remove(DnType::CommonName);
    let name = format!(
        "{role}.{}.{}",
        domain.control_namespace, domain.trust_domain
    );
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    // Whoever gets the key can name identities of this mesh, and nothing else on earth.
    let ours = format!(
        "identity.{}.{}",
        domain.control_namespace, domain.trust_domain
    );
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(ours)],
        excluded_subtrees: Vec::new(),
    });
    params
}

/// Positive, and of at most 20 octets: RFC 5280, section 4.1.2.2.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
mod tests {
    use x509_parser::{parse_x509_certificate, pem::parse_x509_pem};

    use super::*;

    #[test]
    fn the_issuer_is_vouched_for_and_certifies_no_further_issuer() -> anyhow::Result<()> {
        let created = create(&IdentityDomain {
            trust_domain: "cluster.local".to_owned(),
            control_namespace: "culvert".to_owned(),
        })?;
        let (_, anchor) = parse_x509_pem(created.anchor_pem.as_bytes())?;
        let (_, issuer) = parse_x509_pem(created.issuer_pem.as_bytes())?;
        let (_, anchor) = parse_x509_certificate(&anchor.contents)?;
        let (_, issuer) = parse_x509_certificate(&issuer.contents)?;
        issuer.verify_signature(Some(anchor.public_key()))?;
        assert_eq!(
            anchor.subject().to_string(),
            "CN=root.culvert.cluster.local"
        );
        assert_eq!(issuer.issuer(), anchor.subject());
        let constraints = issuer.basic_constraints()?.map(|found| found.value.clone());
        assert_eq!(
            constraints.and_then(|found| found.path_len_constraint),
            Some(0)
        );
        for certificate in [&anchor, &issuer] {
            let names = certificate
                .name_constraints()?
                .map(|names| format!("{:?}", names.value));
            let ours = "identity.culvert.cluster.local";
            assert!(
                names.as_ref().is_some_and(|names| names.contains(ours)),
                "{names:?}"
            );
        }
        assert!(issuer.validity().not_after < anchor.validity().not_after);
        KeyPair::from_pem(&created.issuer_key_pem)?;
        Ok(())
    }
}

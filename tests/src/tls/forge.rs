// SPDX-License-Identifier: Apache-2.0
//! Certificates that are wrong in one thing, of the authority that the mesh trusts.

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, NameConstraints, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    SanType, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::PrivateKeyDer;

use super::{Authority, Credentials, domain, leaf_params, server_name};
use crate::manifests::NAMESPACE;

/// Which side shows the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that dials.
    Client,
    /// The one that is dialled.
    Server,
}

/// A certificate that is wrong in one thing.
#[derive(Debug)]
pub struct Forged {
    /// In what.
    pub what: &'static str,
    /// The certificate.
    pub credentials: Credentials,
    /// The alert that refuses it, as rustls names it.
    pub alert: &'static str,
}

type Alter = fn(&mut CertificateParams, &str) -> anyhow::Result<()>;

const ALTERED: &[(&str, &str, Alter)] = &[
    ("is over", "CertificateExpired", |leaf, _| {
        (leaf.not_before, leaf.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
        Ok(())
    }),
    ("is not yet valid", "CertificateExpired", |leaf, _| {
        (leaf.not_before, leaf.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1));
        Ok(())
    }),
    ("is an authority's", "CertificateUnknown", |leaf, _| {
        leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(())
    }),
    ("has no URI", "CertificateUnknown", |leaf, _| {
        leaf.subject_alt_names.pop();
        Ok(())
    }),
    ("has two URIs", "CertificateUnknown", |leaf, _| {
        uri(leaf, "spiffe://cluster.local/ns/default/sa/other")
    }),
    (
        "is of another trust domain",
        "CertificateUnknown",
        |leaf, account| {
            leaf.subject_alt_names.pop();
            uri(
                leaf,
                &format!("spiffe://elsewhere.local/ns/default/sa/{account}"),
            )
        },
    ),
    (
        "has its URI in upper case",
        "CertificateUnknown",
        |leaf, account| {
            leaf.subject_alt_names.pop();
            let own = domain().identity(NAMESPACE, account).to_string();
            uri(leaf, &own.to_uppercase())
        },
    ),
    (
        "has a URI that is no identity",
        "CertificateUnknown",
        |leaf, _| {
            leaf.subject_alt_names.pop();
            uri(leaf, "https://cluster.local/ns/default/sa/a")
        },
    ),
    (
        "has a URI with a path behind it",
        "CertificateUnknown",
        |leaf, account| {
            leaf.subject_alt_names.pop();
            let own = domain().identity(NAMESPACE, account).to_string();
            uri(leaf, &format!("{own}/more"))
        },
    ),
    (
        "has a critical extension that nobody knows",
        "CertificateUnknown",
        |leaf, _| {
            let mut unknown =
                CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            leaf.custom_extensions.push(unknown);
            Ok(())
        },
    ),
];

/// What only the DNS name is wrong in: a server's verifier says `bad_certificate` to it.
const NAMES: &[(&str, &str, Alter)] = &[
    ("has no DNS name", "BadCertificate", |leaf, _| {
        leaf.subject_alt_names.remove(0);
        Ok(())
    }),
    (
        "has a wildcard for its name",
        "CertificateUnknown",
        |leaf, _| {
            let suffix = server_name("x")
                .split_once('.')
                .context("no dot")?
                .1
                .to_owned();
            leaf.subject_alt_names[0] = SanType::DnsName(format!("*.{suffix}").try_into()?);
            Ok(())
        },
    ),
    ("has another's DNS name", "BadCertificate", |leaf, _| {
        leaf.subject_alt_names[0] = SanType::DnsName(server_name("another").try_into()?);
        Ok(())
    }),
];

/// Every certificate that must be refused, in the name of a ServiceAccount.
pub fn all(of: &Authority, account: &str, side: Side) -> anyhow::Result<Vec<Forged>> {
    let mut all = Vec::new();
    for (what, alert, alter) in ALTERED {
        let credentials = of.forge(account, *alter)?;
        all.push(Forged {
            what,
            credentials,
            alert,
        });
    }
    for (what, at_client, alter) in NAMES {
        let alert = match side {
            Side::Client => "CertificateUnknown",
            Side::Server => at_client,
        };
        all.push(Forged {
            what,
            credentials: of.forge(account, *alter)?,
            alert,
        });
    }
    all.extend(issued(of, account, side)?);
    Ok(all)
}

fn issued(of: &Authority, account: &str, side: Side) -> anyhow::Result<Vec<Forged>> {
    let usage = match side {
        Side::Client => ExtendedKeyUsagePurpose::ServerAuth,
        Side::Server => ExtendedKeyUsagePurpose::ClientAuth,
    };
    let other_usage = of.forge(account, |leaf, _| {
        leaf.extended_key_usages = vec![usage];
        Ok(())
    })?;
    let forged = |what, alert, credentials| Forged {
        what,
        credentials,
        alert,
    };
    Ok(vec![
        forged(
            "has the other side's usage",
            "UnsupportedCertificate",
            other_usage,
        ),
        forged("is its own authority", "UnknownCA", self_signed(account)?),
        forged(
            "is of an unknown authority",
            "UnknownCA",
            Authority::unknown()?.sign(account)?,
        ),
        forged(
            "is of a pod, which is no authority",
            "CertificateUnknown",
            of.pod()?.sign(account)?,
        ),
        forged(
            "is of an authority for other names",
            "CertificateUnknown",
            of.for_other_names()?.sign(account)?,
        ),
        forged(
            "has nine authorities above it",
            "CertificateUnknown",
            of.below(9)?.sign(account)?,
        ),
        forged(
            "goes with another's key",
            "DecryptError",
            of.sign(account)?.with_key_of(of.sign("x")?),
        ),
    ])
}

/// Certificates that are unlike the mesh's own, and nothing is wrong with.
pub fn unusual(of: &Authority, account: &str) -> anyhow::Result<Vec<(&'static str, Credentials)>> {
    let with = |algorithm| of.forge_with(account, algorithm, |_, _| Ok(()));
    Ok(vec![
        ("P-384", with(&PKCS_ECDSA_P384_SHA384)?),
        ("RSA", with(&PKCS_RSA_SHA256)?),
        ("Ed25519", with(&PKCS_ED25519)?),
        ("two authorities above it", of.below(2)?.sign(account)?),
    ])
}

fn uri(leaf: &mut CertificateParams, uri: &str) -> anyhow::Result<()> {
    leaf.subject_alt_names.push(SanType::URI(uri.try_into()?));
    Ok(())
}

fn self_signed(account: &str) -> anyhow::Result<Credentials> {
    let key = KeyPair::generate()?;
    let certificate = leaf_params(account)?.self_signed(&key)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    Ok(Credentials {
        chain: vec![certificate.der().clone()],
        key,
    })
}

// === impl Authority ===

impl Authority {
    /// Signs what a ServiceAccount would get, altered.
    pub fn forge(
        &self,
        account: &str,
        alter: impl FnOnce(&mut CertificateParams, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Credentials> {
        self.forge_with(account, &rcgen::PKCS_ECDSA_P256_SHA256, alter)
    }

    fn forge_with(
        &self,
        account: &str,
        algorithm: &'static SignatureAlgorithm,
        alter: impl FnOnce(&mut CertificateParams, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Credentials> {
        let mut params = leaf_params(account)?;
        alter(&mut params, account)?;
        self.issue(params, &KeyPair::generate_for(algorithm)?)
    }

    /// So many authorities below this one; the last one signs.
    pub fn below(&self, steps: usize) -> anyhow::Result<Self> {
        let ca = || -> anyhow::Result<_> {
            let mut params = CertificateParams::new(Vec::new())?;
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Ok(params)
        };
        let mut last = self.intermediate(ca()?)?;
        for _ in 1..steps {
            last = last.intermediate(ca()?)?;
        }
        Ok(last)
    }

    fn pod(&self) -> anyhow::Result<Self> {
        self.intermediate(leaf_params("signer")?)
    }

    fn for_other_names(&self) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("elsewhere.local".to_owned())],
            excluded_subtrees: Vec::new(),
        });
        self.intermediate(params)
    }

    fn intermediate(&self, mut params: CertificateParams) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let name = format!("intermediate {}", self.chain.len());
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.chain.iter().cloned());
        let issuer = Issuer::from_ca_cert_der(&chain[0], key)?;
        Ok(Self { issuer, chain })
    }
}

// === impl Credentials ===

impl Credentials {
    fn with_key_of(self, other: Self) -> Self {
        Self {
            chain: self.chain,
            key: other.key,
        }
    }

    /// With the last certificate of the chain that many times more.
    pub fn with_chain_of(mut self, more: usize) -> Self {
        let last = self.chain.last().cloned();
        self.chain.extend(last.into_iter().cycle().take(more));
        self
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Who a workload is: the SPIFFE id of its ServiceAccount, and the DNS name that travels as SNI.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where identities live: a trust domain, and the namespace of the control plane in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdentityDomain {
    /// The SPIFFE trust domain, `cluster.local` unless configured.
    pub trust_domain: String,
    /// The namespace that control runs in; part of every DNS identity, as in Linkerd.
    pub control_namespace: String,
}

/// The identity of a ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// The SPIFFE trust domain.
    pub trust_domain: String,
    /// The namespace of the ServiceAccount.
    pub namespace: String,
    /// The name of the ServiceAccount.
    pub service_account: String,
}

/// A string is not the SPIFFE id of a ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("got {got:?}, expected spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
pub struct NotAnIdentity {
    /// What was given.
    pub got: String,
}

// === impl IdentityDomain ===

impl IdentityDomain {
    /// The identity of a ServiceAccount of this domain.
    pub fn identity(&self, namespace: &str, service_account: &str) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        }
    }

    /// The DNS name of an identity, which clients send as SNI and certificates hold as a DNS SAN.
    pub fn server_name(&self, identity: &Identity) -> String {
        format!(
            "{}.{}{}",
            identity.service_account,
            identity.namespace,
            self.suffix()
        )
    }

    /// Whether a server name claims to be an identity of this domain.
    pub fn contains(&self, server_name: &str) -> bool {
        let suffix = self.suffix();
        let at = server_name.len().checked_sub(suffix.len());
        at.and_then(|at| server_name.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case(&suffix))
    }

    fn suffix(&self) -> String {
        format!(
            ".serviceaccount.identity.{}.{}",
            self.control_namespace, self.trust_domain
        )
    }
}

// === impl Identity ===

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl std::str::FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(uri: &str) -> Result<Self, NotAnIdentity> {
        parse(uri).ok_or_else(|| NotAnIdentity {
            got: uri.to_owned(),
        })
    }
}

fn parse(uri: &str) -> Option<Identity> {
    let mut parts = uri.strip_prefix("spiffe://")?.split('/');
    let mut next = || parts.next().filter(|part| !part.is_empty());
    let trust_domain = next()?.to_owned();
    next().filter(|part| *part == "ns")?;
    let namespace = next()?.to_owned();
    next().filter(|part| *part == "sa")?;
    let service_account = next()?.to_owned();
    parts.next().is_none().then_some(Identity {
        trust_domain,
        namespace,
        service_account,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> IdentityDomain {
        IdentityDomain {
            trust_domain: "cluster.local".into(),
            control_namespace: "culvert".into(),
        }
    }

    #[test]
    fn spiffe_ids_round_trip() {
        let id = domain().identity("shop", "cart");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn other_uris_are_refused() {
        for bad in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/sa/b/ns/a",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }

    #[test]
    fn server_names_belong_to_their_domain_only() {
        let name = domain().server_name(&domain().identity("shop", "cart"));
        assert_eq!(
            name,
            "cart.shop.serviceaccount.identity.culvert.cluster.local"
        );
        assert!(domain().contains(&name));
        assert!(domain().contains(&name.to_uppercase()));
        assert!(!domain().contains("cart.shop.svc.cluster.local"));
        assert!(!domain().contains("é"));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! `l5d-require-id`: an application says who the server of a request has to be, as in Linkerd
//! (`linkerd/app/outbound/src/http/require_id_header.rs`). Whoever is somebody else gets nothing of it.

use culvert_api::identity::{Identity, IdentityDomain};
use http::{HeaderMap, HeaderName, HeaderValue};

/// An identity's DNS name, or its SPIFFE id.
const REQUIRE_ID: HeaderName = HeaderName::from_static("l5d-require-id");

/// What a request says of it. Each of several has to hold.
#[derive(Debug)]
pub(super) struct Required(Vec<HeaderValue>);

// === impl Required ===

impl Required {
    /// Takes it out: it is for this proxy alone.
    pub(super) fn take(headers: &mut HeaderMap) -> Option<Self> {
        if !headers.contains_key(REQUIRE_ID) {
            return None;
        }
        let ids = headers.get_all(REQUIRE_ID).iter().cloned().collect();
        headers.remove(REQUIRE_ID);
        Some(Self(ids))
    }

    /// Whether it is `server`, as TLS will prove. What cannot be read names nobody.
    pub(super) fn is(&self, domain: &IdentityDomain, server: Option<&Identity>) -> bool {
        let Some(server) = server else { return false };
        let (name, id) = (domain.server_name(server), server.to_string());
        self.0.iter().all(|required| {
            let required = required.as_bytes();
            required.eq_ignore_ascii_case(name.as_bytes()) || required == id.as_bytes()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "cart.shop.serviceaccount.identity.culvert.cluster.local";
    const ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    fn is(ids: &[&str], meshed: bool) -> Option<bool> {
        let domain = IdentityDomain {
            trust_domain: "cluster.local".into(),
            control_namespace: "culvert".into(),
        };
        let cart = domain.identity("shop", "cart");
        let value =
            |id: &&str| HeaderValue::from_bytes(id.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        let mut headers: HeaderMap = ids.iter().map(|id| (REQUIRE_ID, value(id))).collect();
        headers.insert("l5d-client-id", HeaderValue::from_static(NAME));
        let required = Required::take(&mut headers);
        assert!(!headers.contains_key(REQUIRE_ID), "it was passed on");
        required.map(|required| required.is(&domain, meshed.then_some(&cart)))
    }

    #[test]
    fn only_who_was_asked_for_serves() {
        assert_eq!(is(&[], true), None);
        for ids in [&[NAME][..], &[ID], &[&NAME.to_uppercase()], &[NAME, ID]] {
            assert_eq!(is(ids, true), Some(true), "{ids:?}");
            assert_eq!(is(ids, false), Some(false), "{ids:?} of no peer");
        }
        let other = "web.shop.serviceaccount.identity.culvert.cluster.local";
        let longer = format!("{NAME}.evil");
        for ids in [
            &[""][..],
            &[other],
            &[&longer],
            &["cart"],
            &[NAME, other],
            &[other, NAME],
            &["spiffe://cluster.local/ns/shop/sa/web"],
            &["\u{e9}"],
        ] {
            assert_eq!(is(ids, true), Some(false), "{ids:?}");
        }
    }
}

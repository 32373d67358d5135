// SPDX-License-Identifier: Apache-2.0
//! The inbound rule: what a connection is, from its first bytes alone. Pure.

use culvert_api::identity::IdentityDomain;

use crate::{
    client_hello::{First, Hello, Offer},
    tls::Alert,
};

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A mesh peer: mutual TLS ends here or the connection does; its bytes never reach the
    /// application undecrypted.
    Mesh,
    /// The application's own affair: relayed as it is, from an unauthenticated client.
    Relay,
    /// Refused with RST.
    Reset,
    /// Refused with a TLS alert.
    Alert(Alert),
}

/// The rule. `strict`: the policy lets nobody in without an identity. `own`: the pod's server name.
pub(super) fn decide(strict: bool, first: &First, own: &str, domain: &IdentityDomain) -> Verdict {
    match first {
        First::Hello(hello) if strict => decide_strict(hello, own),
        First::Hello(hello) => decide_permissive(hello, own, domain),
        _ if strict => Verdict::Reset,
        First::Silence | First::Other | First::TimedOut => Verdict::Relay,
    }
}

fn decide_strict(hello: &Hello, own: &str) -> Verdict {
    match hello.offer {
        Offer::Known if claims(hello, own) => Verdict::Mesh,
        Offer::Unknown if claims(hello, own) => Verdict::Alert(Alert::NoApplicationProtocol),
        _ => Verdict::Reset,
    }
}

fn decide_permissive(hello: &Hello, own: &str, domain: &IdentityDomain) -> Verdict {
    let name = hello.server_name.as_deref().unwrap_or_default();
    match hello.offer {
        Offer::Known if claims(hello, own) => Verdict::Mesh,
        _ if claims(hello, own) => Verdict::Alert(Alert::NoApplicationProtocol),
        _ if domain.contains(name) => Verdict::Alert(Alert::UnrecognizedName),
        _ => Verdict::Relay,
    }
}

fn claims(hello: &Hello, own: &str) -> bool {
    let name = hello.server_name.as_deref();
    name.is_some_and(|name| name.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    use Offer::{Known, Nothing, Unknown};

    use super::*;

    const OWN: &str = "cart.shop.serviceaccount.identity.culvert.cluster.local";
    const OTHER: &str = "web.shop.serviceaccount.identity.culvert.cluster.local";
    const FOREIGN: &str = "cart.shop.svc.cluster.local";

    fn domain() -> IdentityDomain {
        IdentityDomain {
            trust_domain: "cluster.local".into(),
            control_namespace: "culvert".into(),
        }
    }

    fn hello(name: &str, offer: Offer) -> First {
        First::Hello(Hello {
            server_name: (!name.is_empty()).then(|| name.to_owned()),
            offer,
        })
    }

    #[test]
    fn the_table() {
        const NO_PROTOCOL: Verdict = Verdict::Alert(Alert::NoApplicationProtocol);
        const UNRECOGNIZED: Verdict = Verdict::Alert(Alert::UnrecognizedName);
        let table = [
            // first, permissive, strict
            (First::Silence, Verdict::Relay, Verdict::Reset),
            (First::Other, Verdict::Relay, Verdict::Reset),
            (First::TimedOut, Verdict::Relay, Verdict::Reset),
            (hello(OWN, Known), Verdict::Mesh, Verdict::Mesh),
            (
                hello(&OWN.to_uppercase(), Known),
                Verdict::Mesh,
                Verdict::Mesh,
            ),
            (hello(OWN, Unknown), NO_PROTOCOL, NO_PROTOCOL),
            (hello(OWN, Nothing), NO_PROTOCOL, Verdict::Reset),
            (hello(OTHER, Known), UNRECOGNIZED, Verdict::Reset),
            (hello(OTHER, Nothing), UNRECOGNIZED, Verdict::Reset),
            (hello(FOREIGN, Known), Verdict::Relay, Verdict::Reset),
            (hello(FOREIGN, Nothing), Verdict::Relay, Verdict::Reset),
            (hello("", Known), Verdict::Relay, Verdict::Reset),
            (hello("", Nothing), Verdict::Relay, Verdict::Reset),
        ];
        for (first, permissive, strict) in table {
            let decide = |strict| decide(strict, &first, OWN, &domain());
            assert_eq!(decide(false), permissive, "permissive, {first:?}");
            assert_eq!(decide(true), strict, "strict, {first:?}");
        }
    }
}

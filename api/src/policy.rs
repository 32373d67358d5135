// SPDX-License-Identifier: Apache-2.0
//! Who may connect to a workload. [`authorize`] is pure: it answers a permit or a denial, never an
//! error, and runs again on open connections when the policy changes.

use serde::{Deserialize, Serialize};

use crate::{
    identity::Identity,
    protocol::{Hint, PortHints},
};

/// The clients that a rule lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clients {
    /// Anybody, in plaintext too.
    Unauthenticated,
    /// Any identity that the mesh's certificate authority vouches for.
    Authenticated,
}

/// One rule: the first rule that matches a client lets it in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// What metrics and logs call the rule.
    pub name: String,
    /// Whom it lets in.
    pub clients: Clients,
}

/// The inbound policy of one workload. A policy without rules lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InboundPolicy {
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// What the workload's ports speak.
    #[serde(default)]
    pub ports: PortHints,
    /// How its requests are logged; not at all if none.
    #[serde(default)]
    pub access_log: Option<AccessLogFormat>,
}

/// How requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogFormat {
    /// A line as Apache's combined format has it.
    Apache,
    /// A JSON object per line.
    Json,
}

/// A client as the inbound proxy knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client<'a> {
    /// A mutual TLS handshake proved this identity.
    Identified(&'a Identity),
    /// Plaintext, or TLS that is the application's own.
    Unidentified,
}

/// Proof that a policy was asked. The connection to the application takes it as an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    rule: String,
}

/// No rule matched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no rule of the policy ({rules}) lets this client in")]
pub struct Denied {
    /// The names of the rules that were asked, joined by commas.
    pub rules: String,
}

// === impl InboundPolicy ===

impl InboundPolicy {
    /// The policy that Linkerd calls so; none for `cluster-authenticated` and
    /// `cluster-unauthenticated`, because rules know nothing of networks, and for what is no name
    /// (<https://linkerd.io/2-edge/reference/authorization-policy/#default-policies>).
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "all-unauthenticated" => Some(Self::permissive()),
            "all-authenticated" => Some(Self::strict()),
            // Who would be let in without it has a rule of its own: all are in the metrics by name.
            "audit" => Some(Self::of("audit", Clients::Unauthenticated)),
            "deny" => Some(Self {
                rules: Vec::new(),
                ..Self::strict()
            }),
            _ => None,
        }
    }

    /// Lets everybody in: `all-unauthenticated`, Linkerd's default.
    pub fn permissive() -> Self {
        Self::of("all-unauthenticated", Clients::Unauthenticated)
    }

    /// Lets in who proves an identity: `all-authenticated`. Also what holds while a policy is unknown.
    pub fn strict() -> Self {
        Self::of("all-authenticated", Clients::Authenticated)
    }

    /// Whether no plaintext may reach the application, so that it is not dialled before a handshake.
    pub fn requires_identity(&self) -> bool {
        !self
            .rules
            .iter()
            .any(|rule| rule.clients == Clients::Unauthenticated)
    }

    /// What a port of the workload speaks.
    pub fn protocol(&self, port: u16) -> Hint {
        self.ports.of(port)
    }

    fn of(name: &str, clients: Clients) -> Self {
        let name = name.to_owned();
        Self {
            rules: vec![Rule { name, clients }],
            ports: PortHints::default(),
            access_log: None,
        }
    }
}

// === impl Permit ===

impl Permit {
    /// The name of the rule that let the client in.
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

/// Whether `policy` lets `client` in.
pub fn authorize(policy: &InboundPolicy, client: Client<'_>) -> Result<Permit, Denied> {
    let rule = policy.rules.iter().find(|rule| matches(rule, client));
    rule.map(|rule| Permit {
        rule: rule.name.clone(),
    })
    .ok_or_else(|| Denied {
        rules: names(policy),
    })
}

fn matches(rule: &Rule, client: Client<'_>) -> bool {
    match (rule.clients, client) {
        (Clients::Unauthenticated, _) | (Clients::Authenticated, Client::Identified(_)) => true,
        (Clients::Authenticated, Client::Unidentified) => false,
    }
}

fn names(policy: &InboundPolicy) -> String {
    let names: Vec<_> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_wants_an_identity_and_permissive_does_not() {
        let someone = "spiffe://cluster.local/ns/a/sa/b".parse::<Identity>();
        let someone = someone.as_ref().map(Client::Identified);
        let Ok(someone) = someone else {
            panic!("a valid identity was refused");
        };
        let (strict, permissive) = (InboundPolicy::strict(), InboundPolicy::permissive());
        assert!(authorize(&strict, Client::Unidentified).is_err());
        assert!(authorize(&strict, someone).is_ok());
        assert!(authorize(&permissive, Client::Unidentified).is_ok());
        assert!(authorize(&permissive, someone).is_ok());
        assert!(strict.requires_identity() && !permissive.requires_identity());
    }

    #[test]
    fn a_policy_has_a_name_or_is_refused() {
        let named = InboundPolicy::named;
        assert_eq!(
            named("all-authenticated").as_ref(),
            Some(&InboundPolicy::strict())
        );
        assert_eq!(
            named("all-unauthenticated").as_ref(),
            Some(&InboundPolicy::permissive())
        );
        let rule = |name: &str, client| {
            let policy = named(name).unwrap_or_else(|| panic!("{name} is not known"));
            authorize(&policy, client).map(|permit| permit.rule().to_owned())
        };
        assert_eq!(rule("audit", Client::Unidentified), Ok("audit".to_owned()));
        assert!(rule("deny", Client::Unidentified).is_err());
        for refused in ["cluster-authenticated", "cluster-unauthenticated", ""] {
            assert_eq!(named(refused), None, "{refused}");
        }
    }

    #[test]
    fn a_policy_without_rules_lets_nobody_in() {
        let nobody = InboundPolicy {
            rules: vec![],
            ..InboundPolicy::strict()
        };
        assert!(authorize(&nobody, Client::Unidentified).is_err());
        assert!(nobody.requires_identity());
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The trust anchors and the issuer of an installation: given, kept by others, or made now.

use culvert_api::identity::IdentityDomain;
use serde_json::{Value, json};

use super::{Error, Result};
use crate::{
    certificates::{self, Created},
    chart::values,
};

/// Completes the values with an authority. It is the answer if it was made here.
pub fn complete(values: &mut Value, namespace: &str) -> Result<Option<Created>> {
    let text = |path: &str| {
        values
            .pointer(path)
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty())
    };
    let truth = |path: &str| values.pointer(path) == Some(&Value::Bool(true));
    let given = Given {
        anchors: text("/identity/trustAnchorsPEM"),
        certificate: text("/identity/issuer/certificatePEM"),
        key: text("/identity/issuer/keyPEM"),
        others_issuer: truth("/identity/external/issuer"),
        others_anchors: truth("/identity/external/trustRoots"),
    };
    if !given.wants_one()? {
        return Ok(None);
    }
    let trust_domain = values
        .pointer("/identity/trustDomain")
        .and_then(Value::as_str);
    let created = certificates::create(&IdentityDomain {
        trust_domain: trust_domain.unwrap_or_default().to_owned(),
        control_namespace: namespace.to_owned(),
    })
    .map_err(|error| Error::Certificates(error.to_string()))?;
    values::merge(
        values,
        &authority(
            &created.anchor_pem,
            &created.issuer_pem,
            &created.issuer_key_pem,
        ),
    );
    Ok(Some(created))
}

/// An authority as values of the chart.
pub fn authority(anchors: &str, certificate: &str, key: &str) -> Value {
    json!({"identity": {"trustAnchorsPEM": anchors, "issuer": {"certificatePEM": certificate, "keyPEM": key}}})
}

#[derive(Clone, Copy, Debug)]
struct Given {
    anchors: bool,
    certificate: bool,
    key: bool,
    others_issuer: bool,
    others_anchors: bool,
}

// === impl Given ===

impl Given {
    /// Whether an authority is to be made; or why what is given can't be one.
    fn wants_one(self) -> Result<bool> {
        let refuse = |message: &str| Err(Error::Usage(message.to_owned()));
        if self.certificate != self.key {
            return refuse("identity.issuer: give both certificatePEM and keyPEM, or neither");
        }
        if self.others_issuer && self.key {
            return refuse("identity.external.issuer: an issuer is given as well, take one");
        }
        if self.others_anchors && self.anchors {
            return refuse(
                "identity.external.trustRoots: trust anchors are given as well, take one",
            );
        }
        let issuer = self.key || self.others_issuer;
        match (issuer, self.anchors || self.others_anchors) {
            (true, true) => Ok(false),
            (false, false) => Ok(true),
            (true, false) => refuse(
                "identity.trustAnchorsPEM: give the trust anchors of the issuer, or identity.external.trustRoots=true",
            ),
            (false, true) => refuse(
                "identity.issuer: give an issuer of the trust anchors, or identity.external.issuer=true",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(given: [bool; 5]) -> Option<bool> {
        let [anchors, certificate, key, others_issuer, others_anchors] = given;
        let given = Given {
            anchors,
            certificate,
            key,
            others_issuer,
            others_anchors,
        };
        given.wants_one().ok()
    }

    #[test]
    fn an_authority_is_made_only_where_there_is_none_at_all() {
        let (yes, no) = (true, false);
        assert_eq!(wants([no, no, no, no, no]), Some(true));
        assert_eq!(wants([yes, yes, yes, no, no]), Some(false));
        assert_eq!(wants([no, no, no, yes, yes]), Some(false));
        assert_eq!(wants([yes, no, no, yes, no]), Some(false));
        assert_eq!(wants([no, yes, yes, no, yes]), Some(false));
    }

    #[test]
    fn half_an_authority_is_refused() {
        let (yes, no) = (true, false);
        for half in [
            [yes, no, no, no, no],
            [no, yes, yes, no, no],
            [yes, yes, no, no, no],
            [no, no, no, yes, no],
            [no, no, no, no, yes],
            [yes, yes, yes, yes, no],
            [yes, yes, yes, no, yes],
        ] {
            assert_eq!(wants(half), None, "{half:?}");
        }
    }
}

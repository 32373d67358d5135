// SPDX-License-Identifier: Apache-2.0
//! Whether the proxies trust what the cluster's ConfigMap says: a kubelet brings a change to them
//! within a minute or two, and an issuer that some of them do not trust yet must not be used.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::pem::Pem;

use super::{certificates::bundle, facts::After, report::Check, unanswered};

/// Of more proxies only so many are asked: each answers with all its metrics.
pub const MOST_ASKED: usize = 20;

/// Names an anchor by the first bytes of its SHA-256.
const METRIC: &str = "culvert_proxy_trust_anchor_expiration_timestamp_seconds{anchor=\"";

/// Whether all proxies that were asked trust the same, and just that.
pub fn check(facts: &After) -> Check {
    let description = "every proxy trusts these anchors";
    let expected = match fingerprints(facts) {
        Ok(expected) => expected,
        Err(check) => return *check,
    };
    let mut found = Vec::new();
    for (proxy, metrics) in &facts.proxies {
        match metrics {
            Ok(metrics) => {
                found.extend(differs(metrics, &expected).map(|why| format!("{proxy} {why}")))
            }
            Err(refusal) => return unanswered(description, refusal).at_most_warning(),
        }
    }
    Check::unless(
        found,
        description,
        "a change of the ConfigMap takes the kubelets two minutes; until no proxy is listed here, \
         do not take an anchor away that is in use, nor use an issuer of a new one",
    )
    .heals()
}

/// Of the ConfigMap's anchors. What is wrong with it has a check of its own.
fn fingerprints(facts: &After) -> Result<BTreeSet<String>, Box<Check>> {
    let bundle = bundle(&facts.anchors)?;
    let blocks = Pem::iter_from_buffer(&bundle).flatten();
    Ok(blocks.map(|block| hex(&block.contents)).collect())
}

fn hex(certificate: &[u8]) -> String {
    let hash = digest(&SHA256, certificate);
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// How what a proxy trusts differs; releases before this one do not tell.
fn differs(metrics: &str, expected: &BTreeSet<String>) -> Option<String> {
    let told: Vec<_> = told(metrics).collect();
    let missing = expected
        .iter()
        .filter(|anchor| !told.iter().any(|told| anchor.starts_with(told)));
    let stale = told
        .iter()
        .filter(|told| !expected.iter().any(|anchor| anchor.starts_with(**told)));
    let (missing, stale) = (missing.count(), stale.count());
    match (told.is_empty(), missing, stale) {
        (true, ..) | (_, 0, 0) => None,
        (_, 0, stale) => Some(format!("still trusts {stale} that are not among them")),
        (_, missing, _) => Some(format!("does not trust {missing} of them yet")),
    }
}

fn told(metrics: &str) -> impl Iterator<Item = &str> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(METRIC));
    lines.filter_map(|rest| Some(rest.split_once('"')?.0).filter(|anchor| !anchor.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(anchors: &[&str]) -> String {
        let lines = anchors
            .iter()
            .map(|anchor| format!("{METRIC}{anchor}\"}} 1.7e9\n"));
        format!("# HELP x\nother 1\n{}", lines.collect::<String>())
    }

    fn expected() -> BTreeSet<String> {
        ["aa11", "bb22"].map(str::to_owned).into()
    }

    #[test]
    fn a_proxy_that_trusts_the_same_is_good() {
        assert_eq!(differs(&metrics(&["bb", "aa"]), &expected()), None);
        assert_eq!(differs(&metrics(&[]), &expected()), None);
    }

    #[test]
    fn what_is_missing_counts_before_what_is_too_much() {
        let differs = |anchors| differs(&metrics(anchors), &expected());
        let missing = "does not trust 1 of them yet";
        assert_eq!(differs(&["aa"]).as_deref(), Some(missing));
        assert_eq!(differs(&["aa", "cc"]).as_deref(), Some(missing));
        let stale = "still trusts 1 that are not among them";
        assert_eq!(differs(&["aa", "bb", "cc"]).as_deref(), Some(stale));
    }

    #[test]
    fn a_fingerprint_is_the_hash_of_the_certificate() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hex(b""), empty);
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The names that Kubernetes takes,
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>.

/// A rule for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// An RFC 1123 label: a Namespace, a Service.
    Label,
    /// An RFC 1123 subdomain: everything else.
    Subdomain,
}

// === impl Rule ===

impl Rule {
    pub(crate) fn allows(self, name: &str) -> bool {
        match self {
            Self::Label => name.len() <= 63 && is_label(name),
            Self::Subdomain => name.len() <= 253 && name.split('.').all(is_label),
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Label => {
                "at most 63 lower-case letters, digits and '-', that neither begin nor end with '-'"
            }
            Self::Subdomain => {
                "at most 253 lower-case letters, digits, '-' and '.', with a letter or digit at \
                 the ends and around each '.'"
            }
        }
    }
}

fn is_label(label: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let ends = !label.starts_with('-') && !label.ends_with('-');
    !label.is_empty() && ends && label.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::Rule;

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "cart-1", "0"] {
            assert!(
                Rule::Label.allows(good) && Rule::Subdomain.allows(good),
                "{good}"
            );
        }
        for bad in ["", "-a", "a-", "A", "a_b", "ä", &"a".repeat(254)] {
            assert!(
                !Rule::Label.allows(bad) && !Rule::Subdomain.allows(bad),
                "{bad}"
            );
        }
        assert!(Rule::Subdomain.allows("a.b") && !Rule::Label.allows("a.b"));
        assert!(!Rule::Subdomain.allows("a..b"));
    }
}

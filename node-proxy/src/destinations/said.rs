// SPDX-License-Identifier: Apache-2.0
//! What control said of a service's protocol, which may change while connections hold the service.

use std::sync::atomic::{AtomicU8, Ordering};

use culvert_api::protocol::Hint;

const ALL: [Option<Hint>; 5] = [
    None,
    Some(Hint::Detect),
    Some(Hint::Opaque),
    Some(Hint::Http1),
    Some(Hint::Http2),
];

/// What control said last; none if it did not say. An index into [`ALL`].
#[derive(Debug, Default)]
pub(crate) struct Said(AtomicU8);

// === impl Said ===

impl Said {
    pub(super) fn new(hint: Option<Hint>) -> Self {
        let said = Self::default();
        said.set(hint);
        said
    }

    pub(super) fn get(&self) -> Option<Hint> {
        let at = usize::from(self.0.load(Ordering::Relaxed));
        ALL.get(at).copied().flatten()
    }

    pub(super) fn set(&self, hint: Option<Hint>) {
        let at = (0..).zip(ALL).find(|(_, each)| *each == hint);
        self.0.store(at.map_or(0, |(at, _)| at), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts() {
        let said = Said::default();
        for hint in ALL {
            said.set(hint);
            assert_eq!(said.get(), hint);
            assert_eq!(Said::new(hint).get(), hint);
        }
    }
}

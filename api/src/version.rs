// SPDX-License-Identifier: Apache-2.0
//! Versions of the protocols between Culvert's processes.
//!
//! Nodes are upgraded one by one, so each side says the newest and the oldest version that it
//! speaks and both use the newest that they share: one release apart works in both directions.

use serde::{Deserialize, Serialize};

/// The versions of one protocol that a process speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The newest version spoken.
    pub newest: u32,
    /// The oldest version still spoken.
    pub oldest: u32,
}

/// The two ends share no version of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the peer speaks versions {}–{}, this process speaks {}–{}: upgrade the older of the two",
    theirs.oldest, theirs.newest, ours.oldest, ours.newest
)]
pub struct NoCommonVersion {
    /// What this process speaks.
    pub ours: Versions,
    /// What the peer said that it speaks.
    pub theirs: Versions,
}

impl Versions {
    /// The newest version that both ends speak.
    pub fn agree(self, theirs: Self) -> Result<u32, NoCommonVersion> {
        let version = self.newest.min(theirs.newest);
        if version < self.oldest || version < theirs.oldest {
            return Err(NoCommonVersion { ours: self, theirs });
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn v(oldest: u32, newest: u32) -> Versions {
        Versions { newest, oldest }
    }

    #[test]
    fn neighbours_agree_and_strangers_do_not() {
        assert_eq!(v(1, 2).agree(v(2, 3)), Ok(2));
        assert_eq!(v(2, 3).agree(v(1, 2)), Ok(2));
        assert_eq!(v(1, 1).agree(v(1, 1)), Ok(1));
        assert!(v(3, 4).agree(v(1, 2)).is_err());
        assert!(v(1, 2).agree(v(3, 4)).is_err());
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Versions of the protocols between Culvert's processes.
//!
//! Nodes are upgraded one by one, so each side says the newest and the oldest version that it
//! speaks and both use the newest that they share: one release apart works in both directions.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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

/// Whether `now` still says all that `earlier` said, so that who reads the earlier release reads
/// this too: fields may have come, none has gone or become something else.
pub fn still_says(now: &Value, earlier: &Value) -> bool {
    match (now, earlier) {
        (Value::Object(now), Value::Object(earlier)) => earlier
            .iter()
            .all(|(name, earlier)| now.get(name).is_some_and(|now| still_says(now, earlier))),
        (Value::Array(now), Value::Array(earlier)) => {
            now.len() == earlier.len() && now.iter().zip(earlier).all(|(now, e)| still_says(now, e))
        }
        _ => now == earlier,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_may_come_and_none_may_go() {
        let earlier = json!({"a": [{"b": 1}]});
        assert!(still_says(
            &json!({"a": [{"b": 1, "new": 2}], "c": null}),
            &earlier
        ));
        assert!(!still_says(&json!({"a": [{"b": "1"}]}), &earlier));
        assert!(!still_says(&json!({"a": [{}]}), &earlier));
        assert!(!still_says(&json!({"a": []}), &earlier));
    }

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

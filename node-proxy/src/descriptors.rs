// SPDX-License-Identifier: Apache-2.0
//! How many descriptors this process may still open, and who gets the last of them.
//!
//! A process that runs out can neither accept nor take what the agent sends: one pod's connections
//! would cost every pod of the node its own. So connections are refused while there are some left.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::resource::{Resource, getrlimit};

/// What a new descriptor is for. Each may take so many sixteenths of the limit, and the rest is for
/// those that come after it, and for pods, links and files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A socket that no connection waits for yet.
    Spare,
    /// A connection of a pod that has more than half of all.
    GreedyConnection,
    /// A connection of any other pod.
    Connection,
    /// A socket for the other leg of a connection.
    Socket,
}

/// Whether `newest`, which was just opened, and `owed` more that will be leave enough for what
/// matters more. The kernel gives the lowest number that is free, so the number says how many are
/// open (<https://pubs.opengroup.org/onlinepubs/9799919799/functions/V2_chap02.html#tag_16_06>).
///
/// The limit is asked for each time, because it can be changed from outside (prlimit(1)).
pub(crate) fn suffice(newest: &impl AsFd, owed: usize, for_a: Use) -> bool {
    let Ok((most, _)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return true;
    };
    let newest = u64::try_from(newest.as_fd().as_raw_fd()).unwrap_or_default();
    newest.saturating_add(owed as u64) < for_a.share(most)
}

// === impl Use ===

impl Use {
    fn share(self, most: u64) -> u64 {
        let sixteenths = match self {
            Self::Spare | Self::GreedyConnection => 12,
            Self::Connection => 14,
            Self::Socket => 15,
        };
        most / 16 * sixteenths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_for_the_others() {
        let shares =
            |most| [Use::GreedyConnection, Use::Connection, Use::Socket].map(|u| u.share(most));
        assert_eq!(shares(1024), [768, 896, 960]);
        let null = std::fs::File::open("/dev/null").unwrap_or_else(|e| panic!("{e}"));
        assert!(suffice(&null, 0, Use::GreedyConnection));
        let (most, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_else(|e| panic!("{e}"));
        assert!(!suffice(
            &null,
            usize::try_from(most).unwrap_or(usize::MAX),
            Use::Socket
        ));
    }
}

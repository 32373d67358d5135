// SPDX-License-Identifier: Apache-2.0
//! What control was told of a pod: that it is steered, or no longer.

use std::time::{SystemTime, UNIX_EPOCH};

use culvert_api::workload::WorkloadKey;

use crate::control_link;

/// The reports of one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    generation: u64,
    state: State,
    withdrawing: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// This proxy told nothing yet.
    #[default]
    Untold,
    Told {
        steered: bool,
        acknowledged: bool,
    },
}

// === impl Report ===

impl Report {
    /// What control should know: the generation, and whether the pod is steered.
    pub(super) fn current(&self) -> Option<(u64, bool)> {
        match self.state {
            State::Untold => None,
            State::Told { steered, .. } => Some((self.generation, steered)),
        }
    }

    /// The same, as control is told of the pod.
    pub(super) fn of(&self, key: &WorkloadKey) -> Option<control_link::Report> {
        let (generation, steered) = self.current()?;
        let key = key.clone();
        Some(control_link::Report {
            key,
            generation,
            steered,
        })
    }

    /// Whether the pod is on its way out of the mesh.
    pub(super) fn is_withdrawing(&self) -> bool {
        self.withdrawing
    }

    /// The pod is `ready` to be dialled with mutual TLS. Says whether that is news for control.
    pub(super) fn steer(&mut self, ready: bool) -> bool {
        if self.withdrawing {
            return matches!(
                self.state,
                State::Told {
                    steered: false,
                    acknowledged: false
                }
            );
        }
        let news = ready && self.state == State::Untold;
        if news {
            self.tell(true);
        }
        news
    }

    /// The pod leaves. Says whether nobody needs to be told: no peer ever knew, or all were told.
    pub(super) fn withdraw(&mut self, known_to_peers: bool) -> bool {
        self.withdrawing = true;
        match self.state {
            State::Untold if !known_to_peers && self.generation == 0 => true,
            State::Told {
                steered: false,
                acknowledged,
            } => acknowledged,
            State::Untold | State::Told { steered: true, .. } => {
                self.tell(false);
                false
            }
        }
    }

    /// The pod stays after all. What was said of its leaving is taken back by the next report. Says
    /// whether anything was.
    pub(super) fn call_off_withdrawal(&mut self) -> bool {
        if !self.withdrawing {
            return false;
        }
        let told = self.state != State::Untold;
        *self = self.next();
        told
    }

    /// Nothing told yet, and what is will be later than what was told before.
    pub(super) fn next(self) -> Self {
        Self {
            generation: self.generation,
            ..Self::default()
        }
    }

    /// Whether every peer knows since this report that the pod leaves, and it still does.
    pub(super) fn is_withdrawn(&self, generation: u64) -> bool {
        let told = State::Told {
            steered: false,
            acknowledged: true,
        };
        self.withdrawing && self.generation == generation && self.state == told
    }

    /// Whether control was told that the pod leaves, and has not yet said that every peer knows.
    pub(super) fn is_leaving(&self) -> bool {
        let told = State::Told {
            steered: false,
            acknowledged: false,
        };
        self.state == told
    }

    /// Every peer knows. Says whether the pod is steered, if this was the last report.
    pub(super) fn acknowledge(&mut self, generation: u64) -> Option<bool> {
        match &mut self.state {
            State::Told {
                steered,
                acknowledged,
            } if generation == self.generation => {
                *acknowledged = true;
                Some(*steered)
            }
            _ => None,
        }
    }

    /// Generations follow the clock, so that they grow from one proxy to the next.
    fn tell(&mut self, steered: bool) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.generation = now.max(self.generation.saturating_add(1));
        self.state = State::Told {
            steered,
            acknowledged: false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_reported_once_and_withdrawn_with_a_later_generation() {
        let mut report = Report::default();
        assert!(!report.steer(false));
        assert!(report.steer(true) && !report.steer(true));
        let Some((first, true)) = report.current() else {
            panic!("{report:?}");
        };
        assert_eq!(report.acknowledge(first - 1), None);
        assert_eq!(report.acknowledge(first), Some(true));
        assert!(!report.withdraw(true));
        let Some((second, false)) = report.current() else {
            panic!("{report:?}");
        };
        assert!(second > first);
        assert_eq!(report.acknowledge(first), None);
        assert_eq!(report.acknowledge(second), Some(false));
        assert!(report.withdraw(false) && !report.steer(true));
    }

    #[test]
    fn a_withdrawal_that_is_called_off_is_taken_back() {
        let mut report = Report::default();
        assert!(report.steer(true) && !report.withdraw(true));
        let withdrawn = report.current();
        assert!(report.call_off_withdrawal() && !report.call_off_withdrawal());
        let mut gone = report;
        assert!(!gone.withdraw(false), "what was taken back is told again");
        assert!(!report.is_withdrawing() && report.steer(true));
        assert!(report.current() > withdrawn, "{report:?}");
    }

    #[test]
    fn what_no_peer_knows_needs_no_withdrawal() {
        let mut report = Report::default();
        assert!(report.withdraw(false));
        assert_eq!(report.current(), None);
        let mut of_earlier_proxy = Report::default();
        assert!(!of_earlier_proxy.withdraw(true));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What a sandbox is, on disk and in the metrics.

use std::time::Duration;

use tokio::time::Instant;

use super::actor::Actor;
use crate::{
    enrolment::{Enrolment, Namespace},
    netns::Netns,
    store::{self, Record},
};

/// How often is looked whether the runtime took the namespace away.
const COLLECT: Duration = Duration::from_secs(60);

/// A sandbox that was added.
pub struct Attached {
    pub record: Record,
    pub netns: Netns,
    pub state: State,
    /// When to look after it again.
    pub wake: Instant,
    /// What was logged of it.
    pub told: Told,
}

/// When was logged last what a pod can make happen as often as it likes.
#[derive(Default)]
pub struct Told {
    /// It was set up again.
    pub repair: Pace,
    /// It could not be.
    pub trouble: Pace,
    /// It is cut off.
    pub cut_off: Pace,
    /// It waits to leave the mesh.
    pub waiting: Pace,
}

/// The first of many, and then one in a while.
#[derive(Default)]
pub struct Pace(Option<Instant>);

/// What a sandbox is.
pub enum State {
    /// Not steered.
    Unmeshed,
    /// Steered.
    Enrolled(Enrolment),
    /// Steered until its peers know better.
    Withdrawing(Enrolment),
    /// Not steered, with rules for its open connections.
    Draining(Namespace),
    /// To be steered, which failed so many times.
    Failed(u32),
}

// === impl Attached ===

impl Attached {
    /// What steers it, when it is steered.
    pub const fn enrolment(&self) -> Option<&Enrolment> {
        match &self.state {
            State::Enrolled(enrolment) | State::Withdrawing(enrolment) => Some(enrolment),
            State::Unmeshed | State::Draining(_) | State::Failed(_) => None,
        }
    }

    /// What steers it, when it is steered.
    pub const fn enrolment_mut(&mut self) -> Option<&mut Enrolment> {
        match &mut self.state {
            State::Enrolled(enrolment) | State::Withdrawing(enrolment) => Some(enrolment),
            State::Unmeshed | State::Draining(_) | State::Failed(_) => None,
        }
    }
}

// === impl Pace ===

impl Pace {
    /// Whether the last one that was allowed is so long ago.
    pub fn allows(&mut self, period: Duration) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= period);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

// === impl State ===

impl State {
    /// The name that metrics know it by.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unmeshed => "unmeshed",
            Self::Enrolled(_) => "enrolled",
            Self::Withdrawing(_) => "withdrawing",
            Self::Draining(_) => "draining",
            Self::Failed(_) => "failed",
        }
    }
}

// === impl Actor ===

impl Actor {
    /// A sandbox is added or restored.
    pub(super) fn hold(&mut self, record: Record, netns: Netns) {
        let state = State::Unmeshed;
        self.gauge(&state, 1);
        self.attached = Some(Attached {
            record,
            netns,
            state,
            wake: Instant::now() + COLLECT,
            told: Told::default(),
        });
    }

    /// A sandbox is let go of.
    pub(super) fn take(&mut self) -> Option<Attached> {
        let attached = self.attached.take()?;
        self.gauge(&attached.state, -1);
        Some(attached)
    }

    /// From one state to another.
    pub(super) fn change(&mut self, change: impl FnOnce(State) -> State) {
        if let Some(mut attached) = self.take() {
            attached.state = change(attached.state);
            self.gauge(&attached.state, 1);
            self.attached = Some(attached);
        }
    }

    /// When to look after the sandbox again.
    pub(super) fn wake_in(&mut self, delay: Duration) {
        if let Some(attached) = &mut self.attached {
            attached.wake = Instant::now() + delay.min(COLLECT);
        }
    }

    pub(super) fn is_steered(&self) -> bool {
        self.attached
            .as_ref()
            .is_some_and(|attached| attached.enrolment().is_some())
    }

    pub(super) fn save(&self) -> Result<(), store::Error> {
        let record = self.attached.as_ref().map(|attached| &attached.record);
        record.map_or(Ok(()), |record| self.shared.store.save(record))
    }

    pub(super) fn log_save(&self) {
        if let Err(error) = self.save() {
            tracing::error!(%error, "Could not write down what became of a pod");
        }
    }

    fn gauge(&self, state: &State, by: i64) {
        let pods = &self.shared.metrics.pods;
        pods.with_label_values(&[state.label()]).add(by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_then_one_in_a_while() {
        let (mut pace, minute) = (Pace::default(), Duration::from_secs(60));
        assert!(pace.allows(minute) && !pace.allows(minute));
        assert!(pace.allows(Duration::ZERO));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What is to be told, and when: again for as long as it stands, since API servers forget events,
//! and later when it could not be told. Pure but for the clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::name;
use crate::desired::{Problem, Severity};

/// How long API servers keep events (their `--event-ttl` is an hour by default): what stands is
/// told again then, and the same trouble of a pod not before.
const AGAIN: Duration = Duration::from_secs(3600);

/// When one that is there already, of whatever age, is told again.
const THERE: Duration = Duration::from_secs(600);

/// What could not be told is tried again after a second, then two, then four …
const RETRY: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// After so many failures trouble is let go of: who finds it finds it again.
pub const TRIES: u32 = 5;

/// What waits to be told at most.
const MOST: usize = 1024;

/// What is to be told, and when.
#[derive(Default)]
pub struct Agenda {
    /// What stands, also where there is nothing to tell of it any more.
    standing: BTreeSet<Problem>,
    /// By the event's name.
    items: BTreeMap<String, Item>,
    /// Trouble by event, and when it was told.
    troubles: BTreeMap<String, Instant>,
}

struct Item {
    problem: Problem,
    due: Instant,
    /// In a row.
    failures: u32,
    stands: bool,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was made.
    Told,
    /// It is there already.
    Repeated,
    /// The API server does not want it.
    Refused,
    /// Another try may mend it.
    Failed,
}

// === impl Agenda ===

impl Agenda {
    /// What stands now: the new is to be told, the gone is not, and told again when it comes back.
    /// How many there is no room for.
    pub fn set(&mut self, now: &BTreeSet<Problem>) -> usize {
        if *now == self.standing {
            return 0;
        }
        for gone in self.standing.difference(now) {
            self.items.remove(&name(gone));
        }
        let new: Vec<_> = now.difference(&self.standing).cloned().collect();
        self.standing.clone_from(now);
        let new = new.into_iter();
        new.filter(|new| !self.add(new.clone(), true)).count()
    }

    /// Trouble of now, unless it was told lately. Whether there is room.
    pub fn trouble(&mut self, problem: Problem) -> bool {
        self.troubles.retain(|_, told| told.elapsed() < AGAIN);
        self.troubles.contains_key(&name(&problem)) || self.add(problem, false)
    }

    fn add(&mut self, problem: Problem, stands: bool) -> bool {
        let name = name(&problem);
        if self.items.len() >= MOST && !self.items.contains_key(&name) {
            return false;
        }
        self.items.entry(name).or_insert_with(|| Item {
            problem,
            due: Instant::now(),
            failures: 0,
            stands,
        });
        true
    }

    /// What is to be told next, and when.
    pub fn next(&self) -> Option<(Instant, &Problem)> {
        let next = self.items.values().min_by_key(|item| item.due)?;
        Some((next.due, &next.problem))
    }

    /// What became of it. How often in a row it has failed.
    pub fn told(&mut self, problem: &Problem, outcome: Outcome) -> u32 {
        let name = name(problem);
        let Some(item) = self.items.get_mut(&name) else {
            return 0;
        };
        if outcome == Outcome::Failed {
            let failures = item.fail();
            if !item.stands && failures >= TRIES {
                self.items.remove(&name);
            }
            return failures;
        }
        if let Some(again) = item.again(outcome) {
            (item.due, item.failures) = (Instant::now() + again, 0);
            return 0;
        }
        if self.items.remove(&name).is_some_and(|item| !item.stands) {
            self.troubles.insert(name, Instant::now());
        }
        0
    }
}

// === impl Item ===

impl Item {
    /// After how long. Trouble is found again, and what is as it should be is said once.
    fn again(&self, outcome: Outcome) -> Option<Duration> {
        let again = match outcome {
            Outcome::Repeated => THERE,
            _ => AGAIN,
        };
        let is_warning = self.problem.fault.severity() == Severity::Warning;
        (self.stands && is_warning).then_some(again)
    }

    fn fail(&mut self) -> u32 {
        let doublings = self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.due = Instant::now() + (RETRY * (1 << doublings)).min(LONGEST);
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::desired::{Fault, Subject};

    fn problem(name: &str, fault: Fault) -> Problem {
        Problem {
            subject: Subject::pod("shop", name, Some(name)),
            fault,
        }
    }

    fn all<const N: usize>(faults: [Fault; N]) -> BTreeSet<Problem> {
        faults.map(|fault| problem("web", fault)).into()
    }

    fn trouble(error: &str) -> Problem {
        let error = error.to_owned();
        problem("web", Fault::NotSteered { error })
    }

    /// In how many seconds something is told next.
    fn wait(agenda: &Agenda) -> Option<u64> {
        let (due, _) = agenda.next()?;
        Some(due.saturating_duration_since(Instant::now()).as_secs())
    }

    fn tell(agenda: &mut Agenda, outcome: Outcome) -> Problem {
        let next = agenda.next().map(|(_, problem)| problem.clone());
        let next = next.unwrap_or_else(|| panic!("nothing to tell"));
        agenda.told(&next, outcome);
        next
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_is_told_again_when_api_servers_have_forgotten_it() {
        let mut agenda = Agenda::default();
        assert_eq!(agenda.set(&all([Fault::HostNetwork])), 0);
        assert_eq!(wait(&agenda), Some(0));
        tell(&mut agenda, Outcome::Told);
        assert_eq!(agenda.set(&all([Fault::HostNetwork])), 0);
        assert_eq!(wait(&agenda), Some(3600));
        advance(AGAIN).await;
        assert_eq!(wait(&agenda), Some(0));
        // Another agent told it.
        tell(&mut agenda, Outcome::Repeated);
        assert_eq!(wait(&agenda), Some(600));
        agenda.set(&all([]));
        assert_eq!(wait(&agenda), None);
        agenda.set(&all([Fault::HostNetwork]));
        assert_eq!(wait(&agenda), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_as_it_should_be_is_told_once() {
        let mut agenda = Agenda::default();
        agenda.set(&all([Fault::Ingress]));
        tell(&mut agenda, Outcome::Told);
        assert_eq!(wait(&agenda), None);
        agenda.set(&all([Fault::Ingress, Fault::Windows]));
        assert_eq!(tell(&mut agenda, Outcome::Refused).fault, Fault::Windows);
        assert_eq!(wait(&agenda), Some(3600));
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_told_later() {
        let mut agenda = Agenda::default();
        agenda.set(&all([Fault::HostNetwork]));
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            tell(&mut agenda, Outcome::Failed);
            assert_eq!(wait(&agenda), Some(seconds));
        }
        tell(&mut agenda, Outcome::Told);
        assert_eq!(wait(&agenda), Some(3600));
        // It holds up nothing else.
        tell(&mut agenda, Outcome::Failed);
        assert!(agenda.trouble(trouble("a")));
        assert_eq!(agenda.next().map(|(_, next)| next), Some(&trouble("a")));
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_is_told_once_an_hour_and_while_it_is_found() {
        let mut agenda = Agenda::default();
        assert!(agenda.trouble(trouble("a")) && agenda.trouble(trouble("b")));
        tell(&mut agenda, Outcome::Told);
        assert!(agenda.trouble(trouble("c")));
        assert_eq!(wait(&agenda), None);
        advance(AGAIN).await;
        assert!(agenda.trouble(trouble("d")));
        for _ in 0..TRIES {
            tell(&mut agenda, Outcome::Failed);
        }
        assert_eq!(wait(&agenda), None);
        assert!(agenda.trouble(trouble("e")));
        assert_eq!(wait(&agenda), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_room_for_so_many() {
        let mut agenda = Agenda::default();
        let many = |n: usize| problem(&n.to_string(), Fault::HostNetwork);
        assert_eq!(agenda.set(&(0..MOST + 2).map(many).collect()), 2);
        assert!(!agenda.trouble(trouble("a")));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What was checked and what came out.

use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Success,
    /// It works, and somebody should look at it.
    Warning,
    /// It does not work.
    Error,
}

/// One check: a line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is checked, as a statement that holds when all is well.
    pub description: String,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found instead, a line each.
    pub found: Vec<String>,
    /// What to do about it.
    pub hint: String,
    /// Whether it may become right by itself, so that waiting makes sense.
    pub heals: bool,
}

/// Checks that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Category {
    /// Its name.
    pub name: &'static str,
    /// Its checks, in the order in which one would look.
    pub checks: Vec<Check>,
}

/// All that was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Categories without a check are not shown.
    pub categories: Vec<Category>,
}

/// More than this is counted, not listed.
const MOST_LINES: usize = 20;

// === impl Check ===

impl Check {
    /// All is well.
    pub fn good(description: impl Into<String>) -> Self {
        Self {
            description: description.into(),
            outcome: Outcome::Success,
            found: Vec::new(),
            hint: String::new(),
            heals: false,
        }
    }

    /// It works, but `found`.
    pub fn warning(
        description: impl Into<String>,
        found: Vec<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Warning,
            found,
            hint: hint.into(),
            ..Self::good(description)
        }
    }

    /// It does not work: `found`.
    pub fn failed(
        description: impl Into<String>,
        found: Vec<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            outcome: Outcome::Error,
            ..Self::warning(description, found, hint)
        }
    }

    /// Good, unless something was found.
    pub fn unless(
        found: Vec<String>,
        description: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        if found.is_empty() {
            return Self::good(description);
        }
        Self::failed(description, found, hint)
    }

    /// A failure of it may go away by itself.
    pub fn heals(self) -> Self {
        Self {
            heals: true,
            ..self
        }
    }

    /// A failure of it is no more than a warning.
    pub fn at_most_warning(self) -> Self {
        Self {
            outcome: self.outcome.min(Outcome::Warning),
            ..self
        }
    }

    /// What was found, cut where it becomes a list that nobody reads.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.found.iter().take(MOST_LINES).cloned().collect();
        if self.found.len() > lines.len() {
            lines.push(format!("and {} more", self.found.len() - lines.len()));
        }
        lines
    }
}

// === impl Report ===

impl Report {
    /// The worst outcome.
    pub fn outcome(&self) -> Outcome {
        let outcomes = self.checks().map(|check| check.outcome);
        outcomes.max().unwrap_or(Outcome::Success)
    }

    /// Whether something failed, and all that failed may become right by itself.
    pub fn may_heal(&self) -> bool {
        let mut failed = self.failed().peekable();
        failed.peek().is_some() && failed.all(|check| check.heals)
    }

    /// What failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks()
            .filter(|check| check.outcome == Outcome::Error)
    }

    fn checks(&self) -> impl Iterator<Item = &Check> {
        self.categories.iter().flat_map(|category| &category.checks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(checks: Vec<Check>) -> Report {
        let name = "a";
        Report {
            categories: vec![Category { name, checks }],
        }
    }

    #[test]
    fn the_worst_check_decides() {
        let good = Check::good("a");
        let warning = Check::warning("b", vec![], "");
        let failed = Check::failed("c", vec![], "");
        assert_eq!(report(vec![]).outcome(), Outcome::Success);
        let both = report(vec![warning.clone(), good.clone()]);
        assert_eq!(both.outcome(), Outcome::Warning);
        assert_eq!(report(vec![failed, warning]).outcome(), Outcome::Error);
    }

    #[test]
    fn waiting_makes_sense_only_if_all_that_failed_may_heal() {
        let heals = Check::failed("a", vec![], "").heals();
        let stays = Check::failed("b", vec![], "");
        assert!(!report(vec![Check::good("a").heals()]).may_heal());
        assert!(report(vec![heals.clone(), Check::good("c")]).may_heal());
        assert!(!report(vec![heals, stays]).may_heal());
    }

    #[test]
    fn a_long_list_is_cut() {
        let found = (0..23).map(|n| n.to_string()).collect();
        let lines = Check::failed("a", found, "").lines();
        assert_eq!(lines.len(), MOST_LINES + 1);
        assert_eq!(lines.last().map(String::as_str), Some("and 3 more"));
    }
}

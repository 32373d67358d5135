// SPDX-License-Identifier: Apache-2.0
//! How a report is shown: to people, and to programs in the form of `linkerd check -o json`.

use serde::Serialize;

use super::{
    args::Output,
    report::{Category, Check, Outcome, Report},
};
use crate::output::Style;

/// As `linkerd check -o json` has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    success: bool,
    categories: Vec<JsonCategory<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonCategory<'a> {
    category_name: &'a str,
    checks: Vec<JsonCheck<'a>>,
}

#[derive(Serialize)]
struct JsonCheck<'a> {
    description: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hint: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    result: Outcome,
}

/// The text that is printed.
pub fn render(report: &Report, output: Output, colours: bool) -> serde_json::Result<String> {
    match output {
        Output::Table => Ok(text(report, |_| true, colours)),
        Output::Short => Ok(text(report, is_notable, colours)),
        Output::Json => json(report),
    }
}

fn is_notable(check: &Check) -> bool {
    check.outcome != Outcome::Success
}

fn text(report: &Report, shown: impl Fn(&Check) -> bool, colours: bool) -> String {
    let mut text = String::new();
    for category in &report.categories {
        let checks: Vec<_> = category
            .checks
            .iter()
            .filter(|check| shown(check))
            .collect();
        if checks.is_empty() {
            continue;
        }
        text += &heading(category, colours);
        text.extend(checks.into_iter().map(|check| lines(check, colours)));
        text.push('\n');
    }
    let sign = sign(report.outcome().worst_shown(), colours);
    text + &format!("Status check results are {sign}\n")
}

fn heading(category: &Category, colours: bool) -> String {
    let line = "-".repeat(category.name.len());
    format!("{}\n{line}\n", Style::Bold.paint(category.name, colours))
}

fn lines(check: &Check, colours: bool) -> String {
    let mut lines = format!("{} {}\n", sign(check.outcome, colours), check.description);
    if check.outcome == Outcome::Success {
        return lines;
    }
    for found in check.lines() {
        lines += &format!("    {found}\n");
    }
    for (index, line) in check.hint.lines().enumerate() {
        let label = if index == 0 { "hint: " } else { "      " };
        lines += &format!("    {label}{line}\n");
    }
    lines
}

fn sign(outcome: Outcome, colours: bool) -> String {
    match outcome {
        Outcome::Success => Style::Good.paint("√", colours),
        Outcome::Warning => Style::Notable.paint("‼", colours),
        Outcome::Error => Style::Bad.paint("×", colours),
    }
}

fn json(report: &Report) -> serde_json::Result<String> {
    let json = Json {
        success: report.outcome() != Outcome::Error,
        categories: report.categories.iter().map(JsonCategory::new).collect(),
    };
    Ok(serde_json::to_string_pretty(&json)? + "\n")
}

// === impl Outcome ===

impl Outcome {
    /// Warnings do not fail the whole, as in `linkerd check`.
    fn worst_shown(self) -> Self {
        if self == Self::Error {
            self
        } else {
            Self::Success
        }
    }
}

// === impl JsonCategory ===

impl<'a> JsonCategory<'a> {
    fn new(category: &'a Category) -> Self {
        Self {
            category_name: category.name,
            checks: category.checks.iter().map(JsonCheck::new).collect(),
        }
    }
}

// === impl JsonCheck ===

impl<'a> JsonCheck<'a> {
    fn new(check: &'a Check) -> Self {
        let bad = check.outcome != Outcome::Success;
        Self {
            description: &check.description,
            hint: if bad { &check.hint } else { "" },
            error: check.found.join("\n"),
            result: check.outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let first = vec![
            Check::good("can reach the API"),
            Check::warning("clock", vec!["3 s apart".to_owned()], "set it"),
        ];
        let second = vec![Check::failed(
            "agents are ready",
            vec!["n1: no".to_owned(), "n2: no".to_owned()],
            "look at\nthe logs",
        )];
        let third = vec![Check::good("fine")];
        let categories = [("one", first), ("three-3", second), ("last", third)];
        let categories = categories.map(|(name, checks)| Category { name, checks });
        Report {
            categories: categories.into(),
        }
    }

    fn rendered(output: Output) -> String {
        render(&report(), output, false).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn people_read_what_is_wrong_and_what_to_do() {
        let expected = "\
one
---
√ can reach the API
‼ clock
    3 s apart
    hint: set it

three-3
-------
× agents are ready
    n1: no
    n2: no
    hint: look at
          the logs

last
----
√ fine

Status check results are ×
";
        assert_eq!(rendered(Output::Table), expected);
    }

    #[test]
    fn short_shows_only_what_is_not_well() {
        let short = rendered(Output::Short);
        assert!(short.starts_with("one\n---\n‼ clock\n"), "{short}");
        assert!(
            !short.contains("last") && short.ends_with("are ×\n"),
            "{short}"
        );
    }

    #[test]
    fn programs_read_what_linkerd_says() -> serde_json::Result<()> {
        let json: serde_json::Value = serde_json::from_str(&rendered(Output::Json))?;
        assert_eq!(json["success"], false);
        let checks = &json["categories"][0]["checks"];
        assert_eq!(
            checks[0],
            serde_json::json!({"description": "can reach the API", "result": "success"})
        );
        assert_eq!(checks[1]["result"], "warning");
        assert_eq!(checks[1]["hint"], "set it");
        let failed = &json["categories"][1];
        assert_eq!(failed["categoryName"], "three-3");
        assert_eq!(failed["checks"][0]["error"], "n1: no\nn2: no");
        assert_eq!(failed["checks"][0]["result"], "error");
        Ok(())
    }

    #[test]
    fn warnings_alone_are_a_success() {
        let mut report = report();
        report.categories.remove(1);
        let text = render(&report, Output::Table, true).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            text.ends_with("Status check results are \x1b[32m√\x1b[0m\n"),
            "{text}"
        );
        assert!(text.contains("\x1b[33m‼\x1b[0m clock"), "{text}");
    }
}

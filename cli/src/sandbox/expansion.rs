// SPDX-License-Identifier: Apache-2.0
//! `$(NAME)` in commands, arguments and environments, as Kubernetes has it
//! (<https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/>):
//! a name that is not known stays as it is written, and `$$` is one `$`.

/// Replaces references in `text` by what `lookup` knows.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let (value, after) = reference(&rest[at + 1..], &lookup);
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    expanded
}

/// What stands for the text after a `$`, and what follows it.
fn reference<'a>(text: &'a str, lookup: &impl Fn(&str) -> Option<String>) -> (String, &'a str) {
    if let Some(after) = text.strip_prefix('$') {
        return ("$".into(), after);
    }
    let name = text
        .strip_prefix('(')
        .and_then(|inner| inner.split_once(')'));
    let Some((name, after)) = name else {
        return ("$".into(), text);
    };
    let value = lookup(name).unwrap_or_else(|| format!("$({name})"));
    (value, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_as_kubernetes_reads_them() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("", ""),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("ü$(A)ü", "ü1ü"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}

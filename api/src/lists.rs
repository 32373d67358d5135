// SPDX-License-Identifier: Apache-2.0
//! Lists in annotations.

use std::{ops::RangeInclusive, str::FromStr};

/// An item of a list is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("got {item:?}, expected {expected}")]
pub struct BadItem {
    /// As written.
    pub item: String,
    /// In words.
    pub expected: &'static str,
}

const PORTS: &str = "a port from 1 to 65535 or a range of them such as 4567-4568";
const NAMES_TOO: &str = "a port from 1 to 65535, a range of them such as 4567-4568, or the name of a port that is there";

/// Parses `25,4567-4568`. An empty list is one, too: it overrides the namespace's.
pub fn ports(list: &str) -> Result<Vec<RangeInclusive<u16>>, BadItem> {
    items(list, PORTS, range)
}

/// Parses `25,4567-4568,mysql`, where `named` tells the ports of a name, if there is such a name.
pub fn named_ports(
    list: &str,
    named: impl Fn(&str) -> Option<Vec<u16>>,
) -> Result<Vec<RangeInclusive<u16>>, BadItem> {
    let ranges = items(list, NAMES_TOO, |item| {
        let of_name = || Some(named(item)?.into_iter().map(|port| port..=port).collect());
        range(item).map(|range| vec![range]).or_else(of_name)
    });
    Ok(ranges?.concat())
}

/// Parses a list whose items are separated by commas.
pub fn items<T>(
    list: &str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, BadItem> {
    if list.trim().is_empty() {
        return Ok(Vec::new());
    }
    let bad = |item: &str| BadItem {
        item: item.to_owned(),
        expected,
    };
    let items = list.split(',').map(str::trim);
    items
        .map(|item| parse(item).ok_or_else(|| bad(item)))
        .collect()
}

/// Digits only: `parse` would take a sign.
pub fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn range(item: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let (first, last) = (number(first)?, number(last)?);
    (1..=last).contains(&first).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges() {
        assert_eq!(ports("25, 4567-4568"), Ok(vec![25..=25, 4567..=4568]));
        assert_eq!(ports(""), Ok(vec![]));
        for bad in ["0", "x", "1,", "70000", "5-4", "-5", "+5", "1-2-3", "1 - 2"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_ports() {
        let named = |name: &str| (name == "my-sql").then(|| vec![3306, 3307]);
        let got = named_ports("25, my-sql", named);
        assert_eq!(got, Ok(vec![25..=25, 3306..=3306, 3307..=3307]));
        assert!(named_ports("sql", named).is_err());
    }
}

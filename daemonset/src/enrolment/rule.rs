// SPDX-License-Identifier: Apache-2.0
//! A policy rule, as far as steering has to understand one.

use rtnetlink::packet_route::{
    AddressFamily,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

/// `RT_TABLE_LOCAL`.
const LOCAL: u32 = 255;

/// A rule that looks a table up, for all packets or for those with a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place: lower ones come first.
    pub priority: u32,
    /// Mark and mask.
    pub mark: Option<(u32, u32)>,
    /// The routing table.
    pub table: u32,
}

/// A rule of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// One that this module understands.
    Plain(Rule),
    /// One with other conditions or another action.
    Foreign {
        /// Its place.
        priority: u32,
    },
}

// === impl Rule ===

impl Rule {
    /// The rule that finds the pod's own addresses.
    pub const fn local(priority: u32) -> Self {
        Self {
            priority,
            mark: None,
            table: LOCAL,
        }
    }

    /// The request for it.
    pub fn message(self, family: AddressFamily) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.header.action = RuleAction::ToTable;
        message
            .attributes
            .push(RuleAttribute::Priority(self.priority));
        message.attributes.push(RuleAttribute::Table(self.table));
        if let Some((mark, mask)) = self.mark {
            message.attributes.push(RuleAttribute::FwMark(mark));
            message.attributes.push(RuleAttribute::FwMask(mask));
        }
        message
    }
}

impl std::fmt::Display for Rule {
    /// As `ip rule` writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.priority)?;
        if let Some((mark, mask)) = self.mark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        write!(f, " lookup {}", self.table)
    }
}

// === impl Found ===

impl Found {
    /// Its place.
    pub const fn priority(self) -> u32 {
        match self {
            Self::Plain(rule) => rule.priority,
            Self::Foreign { priority } => priority,
        }
    }
}

impl From<&RuleMessage> for Found {
    fn from(message: &RuleMessage) -> Self {
        let mut rule = Rule {
            priority: 0,
            mark: None,
            table: message.header.table.into(),
        };
        let header = &message.header;
        let mut plain = header.action == RuleAction::ToTable
            && (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
            && !header.flags.contains(RuleFlags::Invert);
        for attribute in &message.attributes {
            plain &= read(&mut rule, attribute);
        }
        match plain {
            true => Self::Plain(rule),
            false => Self::Foreign {
                priority: rule.priority,
            },
        }
    }
}

/// Whether the attribute is one that a plain rule has.
const fn read(rule: &mut Rule, attribute: &RuleAttribute) -> bool {
    match attribute {
        RuleAttribute::Priority(priority) => rule.priority = *priority,
        RuleAttribute::Table(table) => rule.table = *table,
        RuleAttribute::FwMark(mark) => rule.mark = Some((*mark, mask(rule))),
        RuleAttribute::FwMask(mask) => rule.mark = Some((mark(rule), *mask)),
        // The kernel's way to say "none" (-1), and who made the rule.
        RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
        _ => return false,
    }
    true
}

const fn mark(rule: &Rule) -> u32 {
    match rule.mark {
        Some((mark, _)) => mark,
        None => 0,
    }
}

const fn mask(rule: &Rule) -> u32 {
    match rule.mark {
        Some((_, mask)) => mask,
        None => u32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_survives_the_way_through_netlink() {
        let rule = Rule {
            priority: 100,
            mark: Some((2, 15)),
            table: 17101,
        };
        let message = rule.message(AddressFamily::Inet);
        assert_eq!(Found::from(&message), Found::Plain(rule));
        assert_eq!(rule.to_string(), "100: fwmark 0x2/0xf lookup 17101");
    }

    #[test]
    fn other_conditions_are_foreign() {
        let mut message = Rule::local(0).message(AddressFamily::Inet);
        message
            .attributes
            .push(RuleAttribute::Iifname("eth0".into()));
        assert_eq!(Found::from(&message), Found::Foreign { priority: 0 });
    }
}

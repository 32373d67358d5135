// SPDX-License-Identifier: Apache-2.0
//! A policy rule, as far as steering has to understand one.

use culvert_ebpf_abi::MARK_MASK;
use rtnetlink::packet_route::{
    AddressFamily,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

/// The name of the loopback link, which nobody can change in a rule.
const LO: &str = "lo";

/// `RT_TABLE_LOCAL`.
const LOCAL: u32 = 255;

/// A rule for all packets or for those with a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place: lower ones come first.
    pub priority: u32,
    /// Mark and mask.
    pub mark: Option<(u32, u32)>,
    /// What is done.
    pub action: Action,
}

/// What a rule does with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Looks this routing table up; what it has no route for goes on to the next rule.
    Lookup(u32),
    /// Refuses them: ENETUNREACH.
    Unreachable,
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
        /// Mark and mask of the packets that it is for at most.
        mark: Option<(u32, u32)>,
        /// Whether it does anything with what the pod itself sends.
        outbound: bool,
    },
}

// === impl Rule ===

impl Rule {
    /// The rule that finds the pod's own addresses.
    pub const fn local(priority: u32) -> Self {
        Self::lookup(priority, LOCAL)
    }

    /// A rule for all packets.
    pub const fn lookup(priority: u32, table: u32) -> Self {
        Self {
            priority,
            mark: None,
            action: Action::Lookup(table),
        }
    }

    /// A rule that refuses is dumped with a table that says nothing.
    const fn read_table(&mut self, table: u32) {
        if let Action::Lookup(looked_up) = &mut self.action {
            *looked_up = table;
        }
    }

    /// The request for it.
    pub fn message(self, family: AddressFamily) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message
            .attributes
            .push(RuleAttribute::Priority(self.priority));
        match self.action {
            Action::Lookup(table) => {
                message.header.action = RuleAction::ToTable;
                message.attributes.push(RuleAttribute::Table(table));
            }
            Action::Unreachable => message.header.action = RuleAction::Unreachable,
        }
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
        match self.action {
            Action::Lookup(table) => write!(f, " lookup {table}"),
            Action::Unreachable => f.write_str(" unreachable"),
        }
    }
}

// === impl Found ===

impl Found {
    /// Its place.
    pub const fn priority(self) -> u32 {
        match self {
            Self::Plain(rule) => rule.priority,
            Self::Foreign { priority, .. } => priority,
        }
    }

    /// Whether it may take packets that the pod sends with this mark, whatever else they carry in
    /// the other bits.
    pub const fn may_take(self, wanted: u32) -> bool {
        let (mark, outbound) = match self {
            Self::Plain(rule) => (rule.mark, true),
            Self::Foreign { mark, outbound, .. } => (mark, outbound),
        };
        match mark {
            Some((mark, mask)) => outbound && (mark ^ wanted) & mask & MARK_MASK == 0,
            None => outbound,
        }
    }
}

impl From<&RuleMessage> for Found {
    fn from(message: &RuleMessage) -> Self {
        let header = &message.header;
        let action = match header.action {
            RuleAction::ToTable => Some(Action::Lookup(header.table.into())),
            RuleAction::Unreachable => Some(Action::Unreachable),
            _ => None,
        };
        let mut rule = Rule {
            priority: 0,
            mark: None,
            action: action.unwrap_or(Action::Unreachable),
        };
        let invert = header.flags.contains(RuleFlags::Invert);
        let mut plain = action.is_some()
            && (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
            && !invert;
        for attribute in &message.attributes {
            plain &= read(&mut rule, attribute);
        }
        match plain {
            true => Self::Plain(rule),
            false => Self::Foreign {
                priority: rule.priority,
                mark: rule.mark.filter(|_| !invert),
                outbound: header.action != RuleAction::Nop
                    && (invert || !message.attributes.iter().any(is_inbound)),
            },
        }
    }
}

/// What the pod sends itself comes from `lo`.
fn is_inbound(attribute: &RuleAttribute) -> bool {
    matches!(attribute, RuleAttribute::Iifname(link) if link != LO)
}

/// Whether the attribute is one that a plain rule has.
const fn read(rule: &mut Rule, attribute: &RuleAttribute) -> bool {
    match attribute {
        RuleAttribute::Priority(priority) => rule.priority = *priority,
        RuleAttribute::Table(table) => rule.read_table(*table),
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
    use culvert_ebpf_abi::{MARK_IN, MARK_OUT};

    use super::*;

    #[test]
    fn a_rule_survives_the_way_through_netlink() {
        let lookup = Action::Lookup(17101);
        for (action, text) in [
            (lookup, "lookup 17101"),
            (Action::Unreachable, "unreachable"),
        ] {
            let rule = Rule {
                priority: 100,
                mark: Some((2, 15)),
                action,
            };
            let message = rule.message(AddressFamily::Inet);
            assert_eq!(Found::from(&message), Found::Plain(rule));
            assert_eq!(rule.to_string(), format!("100: fwmark 0x2/0xf {text}"));
        }
    }

    #[test]
    fn other_conditions_are_foreign() {
        let (mut message, invert) = (
            Rule::local(0).message(AddressFamily::Inet),
            RuleFlags::Invert,
        );
        message
            .attributes
            .push(RuleAttribute::Iifname("eth0".into()));
        let found = Found::from(&message);
        assert!(matches!(found, Found::Foreign { priority: 0, .. }));
        assert!(!found.may_take(MARK_OUT));
        message.header.flags = invert;
        assert!(Found::from(&message).may_take(MARK_OUT));
    }

    #[test]
    fn a_rule_takes_what_its_mark_and_link_do_not_exclude() {
        let takes = |attribute: RuleAttribute, mask: u32| {
            let mut message = Rule::lookup(7, 99).message(AddressFamily::Inet);
            let attributes = [attribute, RuleAttribute::FwMask(mask)];
            message.attributes.extend(attributes);
            Found::from(&message).may_take(MARK_OUT)
        };
        assert!(takes(RuleAttribute::FwMark(MARK_OUT), MARK_MASK));
        assert!(takes(RuleAttribute::FwMark(7), 0xff));
        assert!(takes(RuleAttribute::FwMark(MARK_OUT | 7), u32::MAX));
        assert!(!takes(RuleAttribute::FwMark(MARK_IN), MARK_MASK));
        assert!(!takes(RuleAttribute::FwMark(7), u32::MAX));
        assert!(takes(RuleAttribute::Iifname("lo".into()), 0));
        assert!(!takes(RuleAttribute::Iifname("eth0".into()), 0));
        assert!(Found::Plain(Rule::lookup(7, 99)).may_take(MARK_OUT));
    }
}

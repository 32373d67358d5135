// SPDX-License-Identifier: Apache-2.0
//! The address families of a sandbox, in Kubernetes' words.

use std::{fmt, net::IpAddr, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where a kernel with IPv6 has its settings.
const IPV6: &str = "/proc/sys/net/ipv6";

/// A family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

/// One family or both. The first is that of a pod's `podIP` and of services that ask for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<IpFamily>", into = "Vec<IpFamily>")]
pub struct IpFamilies {
    primary: IpFamily,
    dual: bool,
}

/// Not the families of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected IPv4,IPv6, IPv6,IPv4, IPv4 or IPv6")]
pub struct NoFamilies;

// === impl IpFamily ===

impl IpFamily {
    /// The family of an address.
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The one that it is not.
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// Kubernetes' word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl FromStr for IpFamily {
    type Err = NoFamilies;

    fn from_str(text: &str) -> Result<Self, NoFamilies> {
        match text {
            "IPv4" => Ok(Self::V4),
            "IPv6" => Ok(Self::V6),
            _ => Err(NoFamilies),
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl IpFamilies ===

impl IpFamilies {
    /// Both where the kernel has both.
    pub fn of_this_machine() -> Self {
        Self {
            primary: IpFamily::V4,
            dual: Path::new(IPV6).exists(),
        }
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = IpFamily> + Clone {
        let other = self.primary.other();
        std::iter::once(self.primary).chain(self.dual.then_some(other))
    }

    /// The first.
    pub const fn primary(self) -> IpFamily {
        self.primary
    }

    /// Whether it is one of them.
    pub fn contains(self, family: IpFamily) -> bool {
        self.dual || self.primary == family
    }

    /// Whether they are two.
    pub const fn is_dual(self) -> bool {
        self.dual
    }
}

impl Default for IpFamilies {
    fn default() -> Self {
        Self::of_this_machine()
    }
}

impl TryFrom<Vec<IpFamily>> for IpFamilies {
    type Error = NoFamilies;

    fn try_from(families: Vec<IpFamily>) -> Result<Self, NoFamilies> {
        let (primary, dual) = match families.as_slice() {
            [one] => (*one, false),
            [one, other] if one != other => (*one, true),
            _ => return Err(NoFamilies),
        };
        Ok(Self { primary, dual })
    }
}

impl From<IpFamilies> for Vec<IpFamily> {
    fn from(families: IpFamilies) -> Self {
        families.iter().collect()
    }
}

impl FromStr for IpFamilies {
    type Err = NoFamilies;

    fn from_str(text: &str) -> Result<Self, NoFamilies> {
        let families: Vec<_> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
        families.try_into()
    }
}

impl fmt::Display for IpFamilies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(IpFamily::as_str).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_family_or_both_in_either_order() {
        for text in ["IPv4", "IPv6", "IPv4,IPv6", "IPv6,IPv4"] {
            let families: IpFamilies = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(families.to_string(), text);
            assert!(text.starts_with(families.primary().as_str()));
            assert_eq!(families.is_dual(), text.contains(','));
        }
        for text in ["", "ipv4", "IPv4,IPv4", "IPv4,", "IPv4,IPv6,IPv4", "IPv5"] {
            assert_eq!(text.parse::<IpFamilies>(), Err(NoFamilies), "{text}");
        }
    }
}

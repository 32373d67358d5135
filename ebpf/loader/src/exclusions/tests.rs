// SPDX-License-Identifier: Apache-2.0

use super::*;

fn covered(ranges: &[RangeInclusive<u16>]) -> Vec<bool> {
    let mut ports = vec![false; 1 << 16];
    for (bits, first) in ranges.iter().cloned().flat_map(port_prefixes) {
        let first = usize::from(first);
        assert_eq!(first % (1 << (16 - bits)), 0, "{first}/{bits} is aligned");
        ports[first..first + (1 << (16 - bits))].fill(true);
    }
    ports
}

#[test]
fn prefixes_cover_exactly_the_range() {
    for range in [
        0..=0,
        0..=65535,
        1..=65534,
        80..=80,
        65535..=65535,
        1000..=2047,
        1023..=1024,
    ] {
        let covered = covered(std::slice::from_ref(&range));
        for port in 0..=65535_u16 {
            assert_eq!(
                covered[usize::from(port)],
                range.contains(&port),
                "{range:?} {port}"
            );
        }
    }
}

#[test]
fn a_range_takes_few_prefixes() {
    assert_eq!(port_prefixes(0..=65535).count(), 1);
    assert_eq!(port_prefixes(1..=65534).count(), 30);
}

#[test]
fn bits_behind_the_prefix_do_not_count() {
    let one = |addr: &str, prefix_len| {
        let addr = addr.parse().unwrap_or_else(|e| panic!("{addr}: {e}"));
        subnet_key(7, Subnet { addr, prefix_len }).unwrap_or_else(|e| panic!("{e}"))
    };
    assert_eq!(one("10.1.2.3", 8), one("10.0.0.0", 8));
    assert_eq!(one("10.0.0.0", 8), one("::ffff:10.0.0.0", 104));
    assert_eq!(one("2001:db8::1", 32), one("2001:db8:ffff::", 32));
    assert_eq!(one("1.2.3.4", 0).0, SUBNET_HEAD_BITS + 96);
    assert_ne!(one("::", 0), one("0.0.0.0", 0));
    assert_eq!(one("::", 0).0, SUBNET_HEAD_BITS);
}

#[test]
fn mistakes_are_named() {
    let addr = IpAddr::from([10, 0, 0, 0]);
    let wrong = subnets(
        0,
        &[Subnet {
            addr,
            prefix_len: 33,
        }],
    );
    let Err(error) = wrong else {
        panic!("a prefix of 33 bits was taken");
    };
    assert_eq!(
        error.to_string(),
        "cannot exclude 10.0.0.0/33: the prefix length is more than 32"
    );
    #[expect(clippy::reversed_empty_ranges, reason = "the mistake")]
    let backwards = ports(0, &[90..=80]);
    assert!(backwards.is_err());
    let odd: Vec<_> = (0..2050_u16).map(|i| (2 * i + 1)..=(2 * i + 1)).collect();
    assert!(ports(0, &odd).is_err());
}

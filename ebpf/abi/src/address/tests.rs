// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

use core::net::IpAddr;

use super::{Address, V4, V6};

fn address(text: &str) -> Address {
    let addr: IpAddr = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    addr.into()
}

#[test]
fn local_addresses() {
    for text in [
        "127.0.0.1",
        "127.255.255.255",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "::",
        "fe80::1",
        "febf::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.0.1",
    ] {
        assert!(address(text).is_local(), "{text}");
    }
}

#[test]
fn other_addresses() {
    for text in [
        "128.0.0.1",
        "126.255.255.255",
        "169.253.255.255",
        "169.255.0.0",
        "0.0.0.1",
        "10.0.0.1",
        "::2",
        "::127.0.0.1",
        "fec0::1",
        "fe7f::1",
        "fd00::1",
        "2001:db8::1",
        "::1:0:0:1",
    ] {
        assert!(!address(text).is_local(), "{text}");
    }
}

#[test]
fn a_mapped_address_is_the_ipv4_one() {
    assert_eq!(address("::ffff:10.1.2.3"), address("10.1.2.3"));
    assert_eq!(address("10.1.2.3").family(), V4);
    assert_eq!(address("::10.1.2.3").family(), V6);
}

#[test]
fn octets_are_those_on_the_wire() {
    let octets = address("2001:db8::1:2").octets();
    assert_eq!(
        octets,
        [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]
    );
}

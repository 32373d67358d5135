// SPDX-License-Identifier: Apache-2.0
//! The types of a version are those that the first release of that version recorded: an older
//! program may stand behind a newer loader's maps, and the other way round.

use std::{
    fmt::Write as _,
    mem::{offset_of, size_of},
};

use culvert_ebpf_abi::{
    ABI_VERSION, Address,
    exclusions::{Port, Subnet},
    pod::{ConnectCounters, LookupCounters, State},
    probe::Tuple,
};

const RECORDED: &str = include_str!("../../../tests/recorded/0.1.0/abi.txt");

macro_rules! layout {
    ($text:ident, $($type:ident { $($field:ident),+ })+) => {
        $(
            let _ = write!($text, "{} {}:", stringify!($type), size_of::<$type>());
            $(let _ = write!($text, " {}@{}", stringify!($field), offset_of!($type, $field));)+
            $text.push('\n');
        )+
    };
}

fn layout() -> String {
    let mut text = format!("version {ABI_VERSION}\n");
    layout!(text,
        Address { words }
        Subnet { scope, family, address, pad }
        Port { scope, port, pad }
        State { flags, pad }
        ConnectCounters { steered, exempt, excluded, refused_down, refused_bound_device }
        LookupCounters { outbound, inbound, excluded, probe, dropped }
        Tuple { remote, local, remote_port, local_port }
    );
    text
}

#[test]
fn a_changed_type_has_a_new_version() {
    let now = layout();
    if RECORDED.lines().next() == now.lines().next() {
        assert_eq!(now, RECORDED, "add a version to ebpf/abi");
    }
}

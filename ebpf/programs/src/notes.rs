// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `sockops` of the kubelet's cgroup: notes each connection that it opens before its SYN leaves,
//! and forgets it when it is closed, so that nobody who gets the port next passes for a probe.

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE, bpf_sock_ops,
    },
    btf_maps::LruHashMap,
    macros::{btf_map, sock_ops},
    programs::SockOpsContext,
};
use aya_log_ebpf::debug;
use culvert_ebpf_abi::{Address, MAX_PROBES, probe::Tuple};
use culvert_ebpf_programs::{AF_INET, AF_INET6, field, load_u32, words};

const ARGS: usize = core::mem::offset_of!(bpf_sock_ops, __bindgen_anon_1);

#[btf_map]
static PROBES: LruHashMap<Tuple, u32, MAX_PROBES> = LruHashMap::new();

#[sock_ops]
fn note_probes(context: SockOpsContext) -> u32 {
    // SAFETY: the kernel's context.
    let op = unsafe { field!(context.ops, bpf_sock_ops, op) };
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        note(&context);
    } else if op == BPF_SOCK_OPS_STATE_CB {
        // SAFETY: the kernel's context; the union's second word is the new state.
        let state = unsafe { load_u32::<{ ARGS + 4 }, _>(context.ops) };
        if state == BPF_TCP_CLOSE {
            forget(&context);
        }
    }
    1
}

#[inline(always)]
fn note(context: &SockOpsContext) {
    let Some(tuple) = tuple(context.ops) else {
        return;
    };
    // A note that nobody would remove is not made.
    if context
        .set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32)
        .is_ok()
    {
        let noted = PROBES.insert(tuple, 1, BPF_ANY.into());
        debug!(
            context,
            "Noted a probe of {:i} port {}: {}",
            tuple.local.octets(),
            tuple.local_port,
            noted.map_or_else(i32::from, |()| 0)
        );
    }
}

#[inline(always)]
fn forget(context: &SockOpsContext) {
    if let Some(tuple) = tuple(context.ops) {
        let _: Result<(), i32> = PROBES.remove(tuple);
    }
}

/// The connection as the pod will see it: what is remote here is local there.
#[inline(always)]
fn tuple(ops: *const bpf_sock_ops) -> Option<Tuple> {
    // SAFETY: the kernel's context. An AF_INET6 socket's IPv4 addresses are mapped already.
    let (remote, local) = unsafe {
        match field!(ops, bpf_sock_ops, family) {
            AF_INET => (
                Address::v4(field!(ops, bpf_sock_ops, local_ip4)),
                Address::v4(field!(ops, bpf_sock_ops, remote_ip4)),
            ),
            AF_INET6 => (
                Address::v6(words!(ops, bpf_sock_ops, local_ip6)),
                Address::v6(words!(ops, bpf_sock_ops, remote_ip6)),
            ),
            _ => return None,
        }
    };
    Some(Tuple {
        remote,
        local,
        // SAFETY: the kernel's context.
        remote_port: unsafe { field!(ops, bpf_sock_ops, local_port) },
        // In network byte order, in the last two of the four bytes.
        // SAFETY: the kernel's context.
        local_port: u32::from_be(unsafe { field!(ops, bpf_sock_ops, remote_port) }),
    })
}

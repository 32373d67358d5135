// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The program of one pod: `sk_lookup` in the pod's network namespace gives new connections to
//! the proxy's listeners. One instance per pod, because the program cannot learn where it runs.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, BPF_SK_LOOKUP_F_NO_REUSEPORT, BPF_SK_LOOKUP_F_REPLACE, bpf_sk_lookup,
        sk_action::{SK_DROP, SK_PASS},
    },
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, SockMap, lpm_trie::Key},
    macros::{btf_map, sk_lookup},
    programs::SkLookupContext,
};
use aya_log_ebpf::debug;
use culvert_ebpf_abi::{
    Address, LOOPBACK_IFINDEX, MAX_EXCLUSIONS, MAX_OWN, MAX_PROBES,
    exclusions::{PORT_HEAD_BITS, Port, SUBNET_HEAD_BITS, Subnet},
    pod::{LookupCounters, slot},
    probe::Tuple,
};
use culvert_ebpf_programs::{AF_INET, TCP, count, field, load_u16, words};

/// Two bytes since Linux 5.18, the first two of four before.
const REMOTE_PORT: usize = core::mem::offset_of!(bpf_sk_lookup, remote_port);

#[btf_map]
static LISTENERS: SockMap<{ slot::COUNT }> = SockMap::new();
#[btf_map]
static OWN: HashMap<Address, u32, MAX_OWN, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static IN_SUBNETS: LpmTrie<Subnet, u32, MAX_EXCLUSIONS> = LpmTrie::new();
#[btf_map]
static IN_PORTS: LpmTrie<Port, u32, MAX_EXCLUSIONS> = LpmTrie::new();
#[btf_map]
static LOOKUPS: Array<LookupCounters, 1> = Array::new();
/// The node's.
#[btf_map]
static PROBES: LruHashMap<Tuple, u32, MAX_PROBES> = LruHashMap::new();

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[sk_lookup]
fn on_lookup(context: SkLookupContext) -> u32 {
    let lookup = context.lookup;
    // SAFETY: the kernel's context.
    if unsafe { field!(lookup, bpf_sk_lookup, protocol) } != TCP {
        return SK_PASS;
    }
    let Some(counters) = LOOKUPS.get_ptr_mut(0) else {
        return SK_DROP;
    };
    let tuple = tuple(lookup);
    // SAFETY: the kernel's context.
    if unsafe { field!(lookup, bpf_sk_lookup, ingress_ifindex) } == LOOPBACK_IFINDEX {
        on_loopback(&context, &tuple, counters)
    } else {
        on_wire(&context, &tuple, counters)
    }
}

/// What a mark took to `lo`: the application's connection or the proxy's dial to the application.
#[inline(always)]
fn on_loopback(context: &SkLookupContext, tuple: &Tuple, counters: *mut LookupCounters) -> u32 {
    if tuple.local.is_local() || is_own(&tuple.local) {
        return SK_PASS;
    }
    // SAFETY: a pointer into a map's value.
    unsafe { count(&raw mut (*counters).outbound) };
    assign(context, tuple, [slot::OUT4, slot::OUT6], counters)
}

#[inline(always)]
fn on_wire(context: &SkLookupContext, tuple: &Tuple, counters: *mut LookupCounters) -> u32 {
    // The pod dials itself: local delivery names the pod's interface, not lo.
    if tuple.remote == tuple.local || is_own(&tuple.remote) {
        return SK_PASS;
    }
    // SAFETY: the kubelet's side only adds and removes whole entries, and only presence counts.
    if unsafe { PROBES.get(tuple) }.is_some() {
        // SAFETY: a pointer into a map's value.
        unsafe { count(&raw mut (*counters).probe) };
        return SK_PASS;
    }
    if is_excluded(tuple) {
        // SAFETY: a pointer into a map's value.
        unsafe { count(&raw mut (*counters).excluded) };
        return SK_PASS;
    }
    // A neighbour on the link: the proxy can't dial the application there, and to let it through
    // would be a way around the policy.
    if tuple.local.is_local() {
        return refuse(counters);
    }
    // SAFETY: a pointer into a map's value.
    unsafe { count(&raw mut (*counters).inbound) };
    assign(context, tuple, [slot::IN4, slot::IN6], counters)
}

#[inline(always)]
fn is_own(address: &Address) -> bool {
    // SAFETY: only presence counts.
    unsafe { OWN.get(address) }.is_some()
}

#[inline(always)]
fn is_excluded(tuple: &Tuple) -> bool {
    let port = Port::of(0, tuple.local_port as u16);
    if IN_PORTS.get(&Key::new(PORT_HEAD_BITS + 16, port)).is_some() {
        return true;
    }
    let subnet = Subnet::of(0, &tuple.remote);
    IN_SUBNETS
        .get(&Key::new(SUBNET_HEAD_BITS + 128, subnet))
        .is_some()
}

/// Gives the connection to a listener, and refuses it when there is none: never plaintext.
#[inline(always)]
fn assign(
    context: &SkLookupContext,
    tuple: &Tuple,
    [v4, v6]: [u32; 2],
    counters: *mut LookupCounters,
) -> u32 {
    // SAFETY: the kernel's context.
    let family = unsafe { field!(context.lookup, bpf_sk_lookup, family) };
    let slot = if family == AF_INET { v4 } else { v6 };
    // Another program's choice is overruled, and the slot means this listener and no other of
    // its SO_REUSEPORT group.
    let flags = u64::from(BPF_SK_LOOKUP_F_REPLACE | BPF_SK_LOOKUP_F_NO_REUSEPORT);
    if LISTENERS.redirect_sk_lookup(context, slot, flags).is_ok() {
        debug!(
            context,
            "Gave {:i} to {:i} port {} to listener {}",
            tuple.remote.octets(),
            tuple.local.octets(),
            tuple.local_port,
            slot
        );
        return SK_PASS;
    }
    debug!(
        context,
        "Refused {:i} to {:i} port {}: listener {} is missing",
        tuple.remote.octets(),
        tuple.local.octets(),
        tuple.local_port,
        slot
    );
    refuse(counters)
}

#[inline(always)]
fn refuse(counters: *mut LookupCounters) -> u32 {
    // SAFETY: a pointer into a map's value.
    unsafe { count(&raw mut (*counters).dropped) };
    SK_DROP
}

#[inline(always)]
fn tuple(lookup: *const bpf_sk_lookup) -> Tuple {
    // SAFETY: the kernel's context.
    unsafe {
        let (remote, local) = if field!(lookup, bpf_sk_lookup, family) == AF_INET {
            (
                Address::v4(field!(lookup, bpf_sk_lookup, remote_ip4)),
                Address::v4(field!(lookup, bpf_sk_lookup, local_ip4)),
            )
        } else {
            (
                Address::v6(words!(lookup, bpf_sk_lookup, remote_ip6)),
                Address::v6(words!(lookup, bpf_sk_lookup, local_ip6)),
            )
        };
        Tuple {
            remote,
            local,
            remote_port: u16::from_be(load_u16::<REMOTE_PORT, _>(lookup)).into(),
            local_port: field!(lookup, bpf_sk_lookup, local_port),
        }
    }
}

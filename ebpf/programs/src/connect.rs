// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `cgroup/connect4` and `connect6`: marks the TCP connections of enrolled pods. Nothing is
//! rewritten; a rule in the pod routes the mark to `lo`, where the pod's `sk_lookup` waits.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, bpf_sock, bpf_sock_addr},
    btf_maps::{HashMap, LpmTrie, lpm_trie::Key},
    helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt, bpf_sk_storage_get},
    macros::{btf_map, cgroup_sock_addr},
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use culvert_ebpf_abi::{
    Address, LOOPBACK_IFINDEX, MARK_MASK, MARK_OUT, MAX_EXCLUSIONS, MAX_PODS,
    exclusions::{PORT_HEAD_BITS, Port, SUBNET_HEAD_BITS, Subnet},
    pod::{ConnectCounters, ENROLLED, State, UP},
};
use culvert_ebpf_programs::{TCP, count, field, words};

const ALLOW: i32 = 1;
/// connect() fails with EPERM.
const REFUSE: i32 = 0;

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

#[btf_map]
static PODS: HashMap<u64, State, MAX_PODS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static CONNECTS: HashMap<u64, ConnectCounters, MAX_PODS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static OUT_SUBNETS: LpmTrie<Subnet, u32, { 256 * MAX_EXCLUSIONS }> = LpmTrie::new();
#[btf_map]
static OUT_PORTS: LpmTrie<Port, u32, { 256 * MAX_EXCLUSIONS }> = LpmTrie::new();
#[btf_map]
static EXEMPT: ClonedSkStorage = ClonedSkStorage::new();

/// aya's `SkStorage` cannot say `BPF_F_CLONE`: what a listener accepts inherits its exemption.
#[repr(C)]
struct ClonedSkStorage {
    r#type: *const [i32; aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u32,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: a definition that the loader reads; the program only takes its address.
unsafe impl Sync for ClonedSkStorage {}

impl ClonedSkStorage {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    #[inline(always)]
    fn has(&self, socket: *mut bpf_sock) -> bool {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: a map and the context's socket; nothing is made without the CREATE flag.
        let value = unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0) };
        !value.is_null()
    }
}

enum Decision {
    Steer,
    LeaveAlone,
    Refuse,
}

/// What is asked: who connects where.
struct Request<'a> {
    context: &'a SockAddrContext,
    socket: *mut bpf_sock,
    cookie: u64,
    to: Address,
}

#[cgroup_sock_addr(connect4)]
fn on_connect4(context: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context.
    let word = unsafe { field!(context.sock_addr, bpf_sock_addr, user_ip4) };
    on_connect(&context, Address::v4(word))
}

#[cgroup_sock_addr(connect6)]
fn on_connect6(context: SockAddrContext) -> i32 {
    // SAFETY: the kernel's context.
    let words = unsafe { words!(context.sock_addr, bpf_sock_addr, user_ip6) };
    on_connect(&context, Address::v6(words))
}

#[inline(always)]
fn on_connect(context: &SockAddrContext, to: Address) -> i32 {
    let sock_addr = context.sock_addr;
    // SAFETY: the kernel's context. UDP's connect() comes here too.
    if unsafe { field!(sock_addr, bpf_sock_addr, protocol) } != TCP {
        return ALLOW;
    }
    // SAFETY: the context; of its socket's namespace, whoever calls.
    let cookie = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    // SAFETY: only the loader writes to the map.
    let Some(state) = (unsafe { PODS.get(cookie) }) else {
        return ALLOW;
    };
    let request = Request {
        context,
        // SAFETY: the kernel's context.
        socket: unsafe { (*sock_addr).__bindgen_anon_1.sk },
        cookie,
        to,
    };
    match decide(&request, state.flags) {
        Decision::Steer => steer(&request),
        Decision::LeaveAlone => leave_alone(&request),
        Decision::Refuse => REFUSE,
    }
}

#[inline(always)]
fn decide(request: &Request<'_>, flags: u32) -> Decision {
    let Some(counters) = CONNECTS.get_ptr_mut(request.cookie) else {
        // The loader makes the counters first and removes them last.
        return Decision::Refuse;
    };
    // SAFETY: pointers into a map's value.
    unsafe {
        if flags & ENROLLED == 0 || request.to.is_local() {
            return Decision::LeaveAlone;
        }
        if EXEMPT.has(request.socket) {
            count(&raw mut (*counters).exempt);
            return Decision::LeaveAlone;
        }
        if is_excluded(request) {
            count(&raw mut (*counters).excluded);
            debug!(
                request.context,
                "Left alone netns cookie {} to {:i}: excluded",
                request.cookie,
                request.to.octets()
            );
            return Decision::LeaveAlone;
        }
        // Such a socket would slip past the route to lo.
        let device = (*request.socket).bound_dev_if;
        if device != 0 && device != LOOPBACK_IFINDEX {
            count(&raw mut (*counters).refused_bound_device);
            debug!(
                request.context,
                "Refused {:i} to netns cookie {}: bound to device {}",
                request.to.octets(),
                request.cookie,
                device
            );
            return Decision::Refuse;
        }
        if flags & UP == 0 {
            count(&raw mut (*counters).refused_down);
            debug!(
                request.context,
                "Refused {:i} to netns cookie {}: not up",
                request.to.octets(),
                request.cookie
            );
            return Decision::Refuse;
        }
        count(&raw mut (*counters).steered);
    }
    Decision::Steer
}

#[inline(always)]
fn is_excluded(request: &Request<'_>) -> bool {
    let subnet = Subnet::of(request.cookie, &request.to);
    if OUT_SUBNETS
        .get(&Key::new(SUBNET_HEAD_BITS + 128, subnet))
        .is_some()
    {
        return true;
    }
    // SAFETY: the kernel's context; the port is in the first two bytes, in network byte order.
    let port = unsafe { field!(request.context.sock_addr, bpf_sock_addr, user_port) };
    let port = Port::of(request.cookie, u16::from_be(port as u16));
    OUT_PORTS
        .get(&Key::new(PORT_HEAD_BITS + 16, port))
        .is_some()
}

#[inline(always)]
fn steer(request: &Request<'_>) -> i32 {
    debug!(
        request.context,
        "Steered netns cookie {} to {:i}",
        request.cookie,
        request.to.octets()
    );
    // SAFETY: the context's socket.
    let old = unsafe { (*request.socket).mark };
    set_mark(request.context.sock_addr, (old & !MARK_MASK) | MARK_OUT)
}

/// A socket that was steered once may connect again elsewhere.
#[inline(always)]
fn leave_alone(request: &Request<'_>) -> i32 {
    // SAFETY: the context's socket.
    let old = unsafe { (*request.socket).mark };
    if old & MARK_MASK != MARK_OUT {
        return ALLOW;
    }
    set_mark(request.context.sock_addr, old & !MARK_MASK)
}

#[inline(always)]
fn set_mark(sock_addr: *mut bpf_sock_addr, mut mark: u32) -> i32 {
    let value = (&raw mut mark).cast();
    // SAFETY: the context, and four bytes of the stack.
    let result = unsafe { bpf_setsockopt(sock_addr.cast(), SOL_SOCKET, SO_MARK, value, 4) };
    if result == 0 { ALLOW } else { REFUSE }
}

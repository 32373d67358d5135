// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! What both of Culvert's eBPF objects use.
#![no_std]
#![feature(asm_experimental_arch)]

/// `IPPROTO_TCP`.
pub const TCP: u32 = 6;
/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;

/// Reads four bytes of a context. In assembly, because the verifier wants each load of a context
/// to have its own width and a constant offset, and the compiler merges neighbours and makes one
/// load with a computed offset of two in different branches; `read_volatile` stops only the first.
///
/// # Safety
/// The pointer is the program's context and has four bytes to read at the offset.
#[inline(always)]
pub unsafe fn load_u32<const OFFSET: usize, C>(context: *const C) -> u32 {
    let value: u64;
    // SAFETY: the caller's promise. The kernel's contexts do not change behind the program's back.
    unsafe {
        core::arch::asm!(
            "{value} = *(u32 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    value as u32
}

/// Reads two bytes of a context; as [`load_u32`].
///
/// # Safety
/// The pointer is the program's context and has two bytes to read at the offset.
#[inline(always)]
pub unsafe fn load_u16<const OFFSET: usize, C>(context: *const C) -> u16 {
    let value: u64;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "{value} = *(u16 *)({context} + {offset})",
            value = out(reg) value,
            context = in(reg) context,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    value as u16
}

/// Reads one field of a context: `field!(pointer, bpf_sock_addr, user_ip4)`.
#[macro_export]
macro_rules! field {
    ($context:expr, $type:ty, $($field:tt)+) => {
        $crate::load_u32::<{ core::mem::offset_of!($type, $($field)+) }, $type>($context)
    };
}

/// Reads the four words of an IPv6 address in a context.
#[macro_export]
macro_rules! words {
    ($context:expr, $type:ty, $($field:tt)+) => {
        [
            $crate::load_u32::<{ core::mem::offset_of!($type, $($field)+) }, $type>($context),
            $crate::load_u32::<{ core::mem::offset_of!($type, $($field)+) + 4 }, $type>($context),
            $crate::load_u32::<{ core::mem::offset_of!($type, $($field)+) + 8 }, $type>($context),
            $crate::load_u32::<{ core::mem::offset_of!($type, $($field)+) + 12 }, $type>($context),
        ]
    };
}

/// Adds one to a counter that other CPUs add to as well. `core` has no `fetch_add` for this
/// target, which has no compare-and-swap before its version 3.
///
/// # Safety
/// The pointer is into a value of a map.
#[inline(always)]
pub unsafe fn count(counter: *mut u64) {
    // SAFETY: the caller's promise; map values are aligned to 8 bytes.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {one}",
            counter = in(reg) counter,
            one = in(reg) 1_u64,
            options(nostack),
        );
    }
}

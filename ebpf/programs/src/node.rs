// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! The programs of one node: the connect hooks of the pods' cgroup, which mark what is to go to
//! the proxy, and the notes of what the kubelet opens.
#![no_std]
#![no_main]

mod connect;
mod notes;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

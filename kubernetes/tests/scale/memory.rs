// SPDX-License-Identifier: Apache-2.0
//! How much is allocated.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is done by the system's allocator; the numbers are only looked at.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller keeps to what `GlobalAlloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps to what `GlobalAlloc` asks for.
        unsafe { System.dealloc(at, layout) }
    }
}

/// In bytes. What is measured begins with it, as does [`peak`].
pub(crate) fn now() -> usize {
    let now = NOW.load(Relaxed);
    PEAK.fetch_max(now, Relaxed);
    now
}

/// The most that there was at once, in bytes.
pub(crate) fn peak() -> usize {
    PEAK.load(Relaxed)
}

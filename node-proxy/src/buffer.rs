// SPDX-License-Identifier: Apache-2.0
//! Buffers that are borrowed while bytes move: an idle connection holds none.

mod intake;

pub(crate) use self::intake::Intake;

use std::{
    cell::RefCell,
    mem,
    ops::{Deref, DerefMut},
};

use crate::tls::{MAX_FRAGMENT, MAX_HANDSHAKE, MAX_RECORD};

/// How many spare buffers of each size a thread keeps.
const SPARE: usize = 32;

/// What a read of each size takes at most. A full read makes the next one large, so that bulk needs
/// a quarter of the system calls.
const SMALL_READ: usize = MAX_FRAGMENT;
const LARGE_READ: usize = 4 * MAX_FRAGMENT;

/// Room beside the read: for records' overhead, for what rustls adds, for a record in part.
const SLACK: usize = 1 << 10;
const SMALL: usize = SMALL_READ + SLACK;
const LARGE: usize = LARGE_READ + MAX_FRAGMENT + SLACK;

const _: () = assert!(SMALL >= MAX_RECORD && LARGE >= MAX_HANDSHAKE);

thread_local! {
    static SPARES: RefCell<[Vec<Box<[u8]>>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

#[cfg(test)]
thread_local! {
    static LENT: std::cell::Cell<isize> = const { std::cell::Cell::new(0) };
}

/// How many buffers this thread has lent and not got back.
#[cfg(test)]
pub(crate) fn lent() -> isize {
    LENT.get()
}

/// How much is read at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Size {
    /// Until a read was full.
    #[default]
    Small,
    /// Bulk.
    Large,
}

/// Memory of one of the sizes, which goes back to the thread that drops it.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    size: Size,
}

impl Size {
    /// The most that one read takes.
    pub(crate) fn read(self) -> usize {
        match self {
            Self::Small => SMALL_READ,
            Self::Large => LARGE_READ,
        }
    }

    /// What the next read should be like after one of `read` bytes.
    pub(crate) fn after(read: usize) -> Self {
        if read >= SMALL_READ {
            Self::Large
        } else {
            Self::Small
        }
    }

    /// The smaller one that holds `bytes`.
    pub(crate) fn holding(bytes: usize) -> Self {
        if bytes <= SMALL {
            Self::Small
        } else {
            Self::Large
        }
    }

    fn capacity(self) -> usize {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        }
    }
}

impl Buffer {
    pub(crate) fn take(size: Size) -> Self {
        #[cfg(test)]
        LENT.set(LENT.get() + 1);
        let spare = SPARES.with_borrow_mut(|spares| spares[size as usize].pop());
        let bytes = spare.unwrap_or_else(|| vec![0; size.capacity()].into());
        Self { bytes, size }
    }

    pub(crate) fn size(&self) -> Size {
        self.size
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        #[cfg(test)]
        let _ = LENT.try_with(|lent| lent.set(lent.get() - 1));
        let bytes = mem::take(&mut self.bytes);
        // A thread that ends has no spares any more; then the memory is simply freed.
        let _ = SPARES.try_with(|spares| {
            if let Ok(mut spares) = spares.try_borrow_mut()
                && spares[self.size as usize].len() < SPARE
            {
                spares[self.size as usize].push(bytes);
            }
        });
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Pinned links, and swapping the program behind one.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::programs::links::FdLink;

use crate::{Error, pins, sys};

/// Puts a program behind the link that is pinned at `pin` if that is attached to `target` (a
/// cgroup's id or a network namespace's inode number); otherwise attaches a new link and pins
/// that. Whatever was attached stays so until the new program is. Whether a new link was made.
pub(crate) fn put(
    pin: &Path,
    target: u64,
    program: BorrowedFd<'_>,
    attach: impl FnOnce() -> Result<FdLink, Error>,
) -> Result<bool, Error> {
    // What an agent left that died before it moved the pin into place.
    let staged = pins::staged(pin);
    if swap(pin, target, program)? {
        pins::remove_pin(&staged)?;
        return Ok(false);
    }
    let link = attach()?;
    pins::remove_pin(&staged)?;
    link.pin(&staged)
        .map_err(Error::kernel(format!("pin a link at {}", staged.display())))?;
    fs::rename(&staged, pin).map_err(Error::io("rename a pin to", pin))?;
    Ok(true)
}

/// What the link that is pinned at `pin` is attached to, and 0 when that is gone; none if there is
/// no link.
pub(crate) fn target(pin: &Path) -> Result<Option<u64>, Error> {
    match sys::open_pin(pin) {
        Ok(link) => sys::link_target(link.as_fd())
            .map(Some)
            .map_err(Error::io("inspect the pinned link", pin)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open the pinned link", pin)(error)),
    }
}

/// Whether the link that is pinned at `pin`, if any, is attached to something that exists.
pub(crate) fn is_live(pin: &Path) -> Result<bool, Error> {
    Ok(target(pin)?.is_some_and(|target| target != 0))
}

/// Whether there was a link to swap the program of.
fn swap(pin: &Path, target: u64, program: BorrowedFd<'_>) -> Result<bool, Error> {
    let link = match sys::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("open the pinned link", pin)(error)),
    };
    let attached_to =
        sys::link_target(link.as_fd()).map_err(Error::io("inspect the pinned link", pin))?;
    if attached_to != target {
        return Ok(false);
    }
    match sys::update_link(link.as_fd(), program) {
        Ok(()) => Ok(true),
        // What it was attached to went away just now.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOLINK) => Ok(false),
        Err(error) => Err(Error::io("swap the program behind", pin)(error)),
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The eBPF links of the kernel, by what they are attached to: bpf(2).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::libc;

const LINK_GET_FD_BY_ID: i32 = 30;
const LINK_GET_NEXT_ID: i32 = 31;
const OBJ_GET_INFO_BY_FD: i32 = 15;

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A cgroup of this id, which is the inode of its directory.
    Cgroup(u64),
    /// A network namespace of this inode.
    Netns(u64),
    /// Something else.
    Other(u32),
}

/// `union bpf_attr` of the commands that walk over ids, and `struct bpf_link_info`, as far as they matter.
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>
#[repr(C)]
#[derive(Default)]
struct Ids {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    of: u64,
    rest: [u64; 16],
}

/// All links that there are.
pub fn all() -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    let mut ids = Ids::default();
    while bpf(LINK_GET_NEXT_ID, &mut ids).is_ok() {
        let mut one = Ids {
            id: ids.next,
            ..Ids::default()
        };
        // It may be gone by now.
        if let Ok(fd) = bpf(LINK_GET_FD_BY_ID, &mut one) {
            // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
            links.push(link(&unsafe { OwnedFd::from_raw_fd(fd) })?);
        }
        ids.id = ids.next;
    }
    Ok(links)
}

fn link(fd: &OwnedFd) -> io::Result<Link> {
    const CGROUP: u32 = 3;
    const NETNS: u32 = 5;
    let mut info = Info::default();
    let mut get = GetInfo {
        fd: u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
        length: u32::try_from(size_of::<Info>()).map_err(io::Error::other)?,
        info: &raw mut info as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut get)?;
    Ok(match info.kind {
        CGROUP => Link::Cgroup(info.of),
        // A u32: the padding behind it is zero on little-endian machines.
        NETNS => Link::Netns(info.of & u64::from(u32::MAX)),
        other => Link::Other(other),
    })
}

fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the attribute is as large as is said, and the kernel writes to nothing else.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

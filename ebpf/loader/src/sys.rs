// SPDX-License-Identifier: Apache-2.0
//! The few commands of bpf(2) that aya does not offer for pinned links. The only unsafe code of
//! this crate.

use std::{
    ffi::{CString, c_int},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::libc;

// enum bpf_cmd, https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/bpf.h
const BPF_OBJ_GET: c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: c_int = 15;
const BPF_LINK_UPDATE: c_int = 29;
const BPF_LINK_DETACH: c_int = 34;

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: `pathname` outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attr) }?;
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program of the same kind behind a link, in one step.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: RawFd,
        new_prog_fd: RawFd,
        flags: u32,
        old_prog_fd: u32,
    }
    let attr = Attr {
        link_fd: link.as_raw_fd(),
        new_prog_fd: program.as_raw_fd(),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &attr) }.map(drop)
}

/// Detaches a link now. Removing its last pin would do so some time later.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: RawFd,
    }
    let attr = Attr {
        link_fd: link.as_raw_fd(),
    };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &attr) }.map(drop)
}

/// `struct bpf_link_info`'s beginning
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/bpf.h>).
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    // A union: `cgroup.cgroup_id` of 64 bits, or `netns.netns_ino` of 32 and `attach_type`.
    union: [u32; 2],
}

const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_NETNS: u32 = 5;

/// What a link is attached to: a cgroup's id or a network namespace's inode number; 0 when that
/// is gone.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<u64> {
    #[repr(C)]
    struct Attr {
        bpf_fd: RawFd,
        info_len: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let attr = Attr {
        bpf_fd: link.as_raw_fd(),
        info_len: u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `info` has `info_len` bytes and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) }?;
    let [first, second] = info.union;
    match info.kind {
        BPF_LINK_TYPE_CGROUP => Ok(u64::from(second) << 32 | u64::from(first)),
        BPF_LINK_TYPE_NETNS => Ok(first.into()),
        _ => Ok(0),
    }
}

/// bpf(2). The kernel takes an `attr` of any length and reads what is missing as zeros.
///
/// # Safety
/// Pointers in `attr` are what the command expects.
unsafe fn bpf<T>(command: c_int, attr: &T) -> io::Result<RawFd> {
    let attr = std::ptr::from_ref(attr);
    // SAFETY: the caller's promise; `attr` has the length that is said.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

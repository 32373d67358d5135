// SPDX-License-Identifier: Apache-2.0
//! Whether this kernel can do what Culvert needs.

use std::{fs, io};

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use nix::sys::utsname::uname;

use crate::Error;

/// `bpf_sk_lookup.ingress_ifindex`, by which the program of a pod tells the wire from `lo`, came
/// with this version (<https://git.kernel.org/torvalds/c/f89315650ba3>).
const OLDEST: (u32, u32) = (5, 17);

/// Checks that this kernel can do what Culvert needs.
///
/// # Errors
/// [`Error::Unsupported`], which names all that is missing.
pub fn probe_kernel() -> Result<(), Error> {
    let mut missing = Vec::new();
    missing.extend(kernel_version());
    missing.extend(file_system("cgroup2", "CONFIG_CGROUPS"));
    missing.extend(file_system("bpf", "CONFIG_BPF_SYSCALL"));
    match ebpf() {
        Ok(faults) => missing.extend(faults),
        Err(error) => missing.push(refused(&error)),
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::Unsupported { missing })
    }
}

fn kernel_version() -> Option<String> {
    let release = uname().ok()?.release().to_string_lossy().into_owned();
    let (major, minor) = OLDEST;
    (parse_version(&release)? < OLDEST).then(|| {
        format!(
            "Linux {major}.{minor} or later for sk_lookup's ingress_ifindex (this is {release})"
        )
    })
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn file_system(name: &str, config: &str) -> Option<String> {
    let known = fs::read_to_string("/proc/filesystems").ok()?;
    let found = known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name));
    (!found).then(|| format!("the {name} file system ({config})"))
}

fn ebpf() -> Result<Vec<String>, ProgramError> {
    let mut missing = Vec::new();
    for (program, name, config) in [
        (
            ProgramType::CgroupSockAddr,
            "cgroup/connect",
            "CONFIG_CGROUP_BPF",
        ),
        (ProgramType::SockOps, "sockops", "CONFIG_CGROUP_BPF"),
        (ProgramType::SkLookup, "sk_lookup", "CONFIG_INET"),
    ] {
        if !is_program_supported(program)? {
            missing.push(format!("{name} programs ({config})"));
        }
    }
    for (map, name) in [
        (MapType::LpmTrie, "LPM tries"),
        (MapType::LruHash, "LRU hashes"),
        (MapType::SkStorage, "socket storage (CONFIG_NET)"),
        (MapType::SockMap, "SOCKMAPs (CONFIG_NET_SOCK_MSG)"),
        (MapType::RingBuf, "ring buffers"),
    ] {
        if !is_map_supported(map).map_err(ProgramError::SyscallError)? {
            missing.push(format!("maps that are {name}"));
        }
    }
    for (program, helper, name) in [
        (
            ProgramType::CgroupSockAddr,
            BpfHelper::BPF_FUNC_get_netns_cookie,
            "bpf_get_netns_cookie",
        ),
        (
            ProgramType::CgroupSockAddr,
            BpfHelper::BPF_FUNC_sk_storage_get,
            "bpf_sk_storage_get",
        ),
        (
            ProgramType::CgroupSockAddr,
            BpfHelper::BPF_FUNC_setsockopt,
            "bpf_setsockopt",
        ),
        (
            ProgramType::SockOps,
            BpfHelper::BPF_FUNC_sock_ops_cb_flags_set,
            "bpf_sock_ops_cb_flags_set",
        ),
        (
            ProgramType::SkLookup,
            BpfHelper::BPF_FUNC_sk_assign,
            "bpf_sk_assign",
        ),
    ] {
        if !is_helper_supported(program, helper)? {
            missing.push(format!("the helper {name} in {program:?} programs"));
        }
    }
    Ok(missing)
}

/// The kernel did not even let us ask.
fn refused(error: &ProgramError) -> String {
    if let ProgramError::SyscallError(error) = error
        && error.io_error.kind() == io::ErrorKind::PermissionDenied
    {
        return "the permission to load eBPF programs (CAP_BPF and CAP_NET_ADMIN)".to_owned();
    }
    format!("an answer to the question what eBPF can do here ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("6.18.44-fc-v445"), Some((6, 18)));
        assert_eq!(parse_version("5.17"), Some((5, 17)));
        assert_eq!(parse_version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(parse_version("six"), None);
    }
}

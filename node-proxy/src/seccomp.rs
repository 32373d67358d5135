// SPDX-License-Identifier: Apache-2.0
//! The system calls that the proxy never makes, refused by the kernel from the start on.
//!
//! A list of what is refused, not of what is allowed: a new libc or kernel must not stop the
//! traffic of a node. What is on it would help who took the process over: to become another
//! program, to look into others, to reach the kernel's rarely used parts.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

/// The obsolete way to packets below IP
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/linux/net.h#L65>).
const SOCK_PACKET: libc::c_int = 10;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotFiltered {
    #[error("could not make the seccomp filter: {0}")]
    Made(#[from] BackendError),
    #[error("could not install the seccomp filter: {0}")]
    Installed(#[from] seccompiler::Error),
}

/// Installs the filters for every thread of the process, and those to come.
pub(crate) fn install() -> Result<(), NotFiltered> {
    for filter in filters()? {
        apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

fn filters() -> Result<[BpfProgram; 2], BackendError> {
    let mut refused: Rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    refused.insert(libc::SYS_clone, vec![processes()?]);
    refused.insert(libc::SYS_socket, sockets()?);
    foreign_numbers(&mut refused);
    // Its flags lie in memory, where no filter sees them. Without it libc makes threads by clone.
    let unknown: Rules = [(libc::SYS_clone3, Vec::new())].into();
    Ok([
        program(unknown, libc::ENOSYS)?,
        program(refused, libc::EPERM)?,
    ])
}

fn program(rules: Rules, errno: libc::c_int) -> Result<BpfProgram, BackendError> {
    let refuse = SeccompAction::Errno(errno.cast_unsigned());
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
}

/// A clone that is no thread.
fn processes() -> Result<SeccompRule, BackendError> {
    let thread = libc::CLONE_THREAD as u64;
    condition(0, SeccompCmpOp::MaskedEq(thread), 0).and_then(|no| SeccompRule::new(vec![no]))
}

/// A socket of another family than IPv4, IPv6 and Unix, or a raw one.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    let families = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX];
    let other = families.map(|family| condition(0, SeccompCmpOp::Ne, family as u64));
    let other = SeccompRule::new(other.into_iter().collect::<Result<_, _>>()?)?;
    let kind = |kind: libc::c_int| {
        let mask = SeccompCmpOp::MaskedEq(0xf);
        condition(1, mask, kind as u64).and_then(|kind| SeccompRule::new(vec![kind]))
    };
    Ok(vec![other, kind(libc::SOCK_RAW)?, kind(SOCK_PACKET)?])
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Dword, operator, value)
}

/// The x32 ABI has all calls again under other numbers, and some under numbers of its own
/// (<https://elixir.bootlin.com/linux/v6.18/source/arch/x86/entry/syscalls/syscall_64.tbl#L405>).
fn foreign_numbers(rules: &mut Rules) {
    const X32: i64 = 0x4000_0000;
    if cfg!(target_arch = "x86_64") {
        let again: Vec<_> = rules
            .iter()
            .map(|(call, rules)| (X32 | call, rules.clone()))
            .collect();
        rules.extend(again);
        rules.extend((512..548).map(|call| (X32 | call, Vec::new())));
    }
}

#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_mknod,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS__sysctl,
];

#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

static REFUSED: std::sync::LazyLock<Vec<i64>> = std::sync::LazyLock::new(|| [OLD, CALLS].concat());

const CALLS: &[i64] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_personality,
    // Namespaces and file systems.
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
];

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Installed for one thread only, so that the other tests go on.
    fn filtered<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            for filter in filters().unwrap_or_else(|e| panic!("{e}")) {
                seccompiler::apply_filter(&filter).unwrap_or_else(|e| panic!("{e}"));
            }
            test()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn errno(call: i64, arguments: [i64; 3]) -> i32 {
        let [a, b, c] = arguments;
        // SAFETY: the filter refuses these calls before the kernel looks at their arguments; where
        // it does not, they name nothing that exists.
        let returned = unsafe { libc::syscall(call, a, b, c, 0, 0) };
        match returned {
            -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(0),
            _ => 0,
        }
    }

    #[test]
    fn what_the_proxy_never_does_is_refused() {
        let refused = filtered(|| {
            let inet = i64::from(libc::AF_INET);
            [
                errno(libc::SYS_unshare, [i64::from(libc::CLONE_NEWNET), 0, 0]),
                errno(libc::SYS_execve, [0; 3]),
                errno(libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0]),
                errno(libc::SYS_socket, [i64::from(libc::AF_NETLINK), 3, 0]),
                errno(libc::SYS_socket, [i64::from(libc::AF_PACKET), 3, 0]),
                errno(libc::SYS_socket, [inet, i64::from(libc::SOCK_RAW), 1]),
                errno(libc::SYS_bpf, [0; 3]),
                #[cfg(target_arch = "x86_64")]
                errno(0x4000_0000 | 520, [0; 3]),
            ]
        });
        assert!(
            refused.iter().all(|errno| *errno == libc::EPERM),
            "{refused:?}"
        );
    }

    #[test]
    fn what_the_proxy_does_goes_on() {
        let got = filtered(|| -> std::io::Result<String> {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            let to = listener.local_addr()?;
            let thread =
                std::thread::spawn(move || std::net::TcpStream::connect(to)?.write_all(b"hello"));
            let mut got = String::new();
            listener.accept()?.0.read_to_string(&mut got)?;
            thread
                .join()
                .map_err(|_| std::io::Error::other("the thread failed"))??;
            std::net::UdpSocket::bind("127.0.0.1:0")?;
            let resolved = std::net::ToSocketAddrs::to_socket_addrs("localhost:80")?;
            assert!(resolved.count() > 0);
            Ok(got)
        });
        assert_eq!(got.unwrap_or_else(|e| panic!("{e}")), "hello");
    }
}

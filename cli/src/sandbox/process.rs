// SPDX-License-Identifier: Apache-2.0
//! Starting a process in its cgroup, namespaces and privileges.

use std::{
    ffi::{CStr, CString, OsString},
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{prctl, resource},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid},
};

/// The highest capability that a kernel may have; the unknown ones are EINVAL and passed over.
const MAX_CAPABILITY: libc::c_ulong = 63;

/// What to start, and where.
#[derive(Debug)]
pub struct Launch {
    /// The program, with its path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub cwd: Option<PathBuf>,
    /// Where its output goes, at the end of the file.
    pub log: PathBuf,
    /// Its cgroup, which is made.
    pub cgroup: PathBuf,
    /// Its network namespace.
    pub netns: OwnedFd,
    /// Its user and group, without any capability; root with all of them otherwise.
    pub unprivileged: Option<u32>,
    /// What it sees of the machine as its own.
    pub private: Option<Private>,
    /// How many files it may open: soft and hard.
    pub files: (u64, u64),
}

/// A mount namespace and a host name that are not the machine's.
#[derive(Debug)]
pub enum Private {
    /// Of the process's own.
    New {
        /// What it sees as `/etc/hosts`.
        hosts: PathBuf,
        /// What it sees as `/etc/resolv.conf`.
        resolv_conf: PathBuf,
        /// What it sees as the host's name.
        hostname: String,
    },
    /// Those of a process that runs, by its pidfd.
    Of(OwnedFd),
}

/// All that the child needs between fork and exec, where it can allocate nothing.
struct Child {
    procs: File,
    netns: OwnedFd,
    unprivileged: Option<u32>,
    private: Option<ChildPrivate>,
    files: (u64, u64),
}

enum ChildPrivate {
    New {
        hosts: CString,
        resolv_conf: CString,
        hostname: String,
    },
    Of(OwnedFd),
}

// === impl Launch ===

impl Launch {
    /// The command, ready to be spawned.
    pub fn command(self) -> io::Result<Command> {
        let log = self.open_log()?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        let child = self.child()?;
        before_exec(&mut command, move || child.set_up());
        Ok(command)
    }

    fn open_log(&self) -> io::Result<File> {
        if let Some(dir) = self.log.parent() {
            fs::create_dir_all(dir)?;
        }
        File::options().create(true).append(true).open(&self.log)
    }

    fn child(self) -> io::Result<Child> {
        fs::create_dir_all(&self.cgroup)?;
        let procs = File::options()
            .write(true)
            .open(self.cgroup.join("cgroup.procs"))?;
        let private = self.private.map(ChildPrivate::try_from).transpose()?;
        Ok(Child {
            procs,
            netns: self.netns,
            unprivileged: self.unprivileged,
            private,
            files: self.files,
        })
    }
}

// === impl Child ===

impl Child {
    fn set_up(&self) -> io::Result<()> {
        setsid()?;
        (&self.procs).write_all(b"0")?;
        setns(self.netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
        match &self.private {
            Some(ChildPrivate::New {
                hosts,
                resolv_conf,
                hostname,
            }) => privatise(hosts, resolv_conf, hostname)?,
            Some(ChildPrivate::Of(pidfd)) => {
                setns(
                    pidfd.as_fd(),
                    CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS,
                )?;
            }
            None => {}
        }
        let (soft, hard) = self.files;
        let (_, most) = resource::getrlimit(resource::Resource::RLIMIT_NOFILE)?;
        resource::setrlimit(
            resource::Resource::RLIMIT_NOFILE,
            soft.min(most),
            hard.min(most),
        )?;
        match self.unprivileged {
            Some(id) => drop_privileges(id),
            None => Ok(()),
        }
    }
}

impl TryFrom<Private> for ChildPrivate {
    type Error = io::Error;

    fn try_from(private: Private) -> io::Result<Self> {
        Ok(match private {
            Private::New {
                hosts,
                resolv_conf,
                hostname,
            } => Self::New {
                hosts: c_string(&hosts)?,
                resolv_conf: c_string(&resolv_conf)?,
                hostname,
            },
            Private::Of(pidfd) => Self::Of(pidfd),
        })
    }
}

fn privatise(hosts: &CStr, resolv_conf: &CStr, hostname: &str) -> io::Result<()> {
    const NONE: Option<&CStr> = None;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    // Slave, not private: a namespace's name or a mount that the sandbox removes goes away here too.
    mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
    for (file, over) in [(hosts, c"/etc/hosts"), (resolv_conf, c"/etc/resolv.conf")] {
        match mount(Some(file), over, NONE, MsFlags::MS_BIND, NONE) {
            // A machine may be without either.
            Err(nix::Error::ENOENT) => {}
            mounted => mounted?,
        }
    }
    Ok(nix::unistd::sethostname(hostname)?)
}

fn drop_privileges(id: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: this option takes one number and touches no memory.
        let _ = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(prctl::set_no_new_privs()?)
}

/// Has a closure run in the child between fork and exec.
pub fn before_exec(
    command: &mut Command,
    f: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closures given here only make system calls, on memory that was allocated before.
    unsafe { command.pre_exec(f) };
}

/// A descriptor of a process, by which its namespaces can be entered.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the system call takes two numbers and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = nix::Error::result(fd)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Finds a program as execvp does.
pub fn find_program(program: &str, path: &str) -> io::Result<PathBuf> {
    if program.contains('/') {
        return Ok(program.into());
    }
    let mut candidates = path.split(':').map(|dir| Path::new(dir).join(program));
    candidates
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| {
            let message = format!("{program:?} is in no directory of PATH ({path})");
            io::Error::new(io::ErrorKind::NotFound, message)
        })
}

/// Whether a file is there and may be executed.
pub fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Lets this process and its children open as many files as it may: without CAP_SYS_RESOURCE, as
/// many as its hard limit has.
pub fn raise_file_limit() -> io::Result<()> {
    let files = resource::Resource::RLIMIT_NOFILE;
    let (_, hard) = resource::getrlimit(files)?;
    let most = fs::read_to_string("/proc/sys/fs/nr_open")?;
    let most = most.trim().parse().unwrap_or(FILES).min(FILES).max(hard);
    match resource::setrlimit(files, most, most) {
        Err(nix::Error::EPERM) => Ok(resource::setrlimit(files, hard, hard)?),
        raised => Ok(raised?),
    }
}

/// The most files that a process of the sandbox may open.
pub const FILES: u64 = 1 << 20;

#[cfg(test)]
mod tests;

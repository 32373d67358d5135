// SPDX-License-Identifier: Apache-2.0
//! A pod's network namespace. It is entered only by a closure on a thread of its own, which ends
//! instead of coming back, so that no other code can ever find itself in a pod's namespace.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use culvert_api::workload::NetnsCookie;
use nix::{
    errno::Errno,
    getsockopt_impl, libc,
    sched::{CloneFlags, setns},
    sockopt_impl,
    sys::{
        socket::{self, AddressFamily, SockFlag, SockType, sockopt::GetStruct},
        statfs::{FsType, fstatfs},
    },
};
use tokio::sync::oneshot;

/// `NSFS_MAGIC`
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/magic.h#L95>).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

const STACK: usize = 256 << 10;

sockopt_impl!(
    /// `SO_NETNS_COOKIE`.
    CookieOption,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    GetStruct<u64>
);

/// An open network namespace. Clones share the descriptor, which keeps the namespace alive.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<File>,
    cookie: NetnsCookie,
}

/// A network namespace could not be opened or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing at the path that the runtime gave.
    #[error("could not open the network namespace {}: {source}", path.display())]
    Open {
        /// What the runtime gave.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else is at the path: the namespace was unmounted.
    #[error("{} is no longer a namespace: the runtime took the pod's sandbox down", path.display())]
    NotNamespace {
        /// What the runtime gave.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("could not enter the network namespace: {0} (CAP_SYS_ADMIN is needed)")]
    Enter(#[source] Errno),
    /// The kernel is too old or has no networking.
    #[error("could not read the namespace's cookie: {0} (SO_NETNS_COOKIE needs Linux 5.14)")]
    Cookie(#[source] Errno),
    /// No thread could be made.
    #[error("could not start a thread for the namespace: {0}")]
    Thread(#[source] io::Error),
    /// A bug of the agent: the closure panicked.
    #[error("the work in the network namespace panicked, which is a bug of culvert-agent")]
    Panicked,
}

// === impl Error ===

impl Error {
    /// Whether it says that the namespace is gone, and not that looking failed.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NotNamespace { .. } => true,
            Self::Enter(_) | Self::Cookie(_) | Self::Thread(_) | Self::Panicked => false,
        }
    }
}

// === impl Netns ===

impl Netns {
    /// Opens the namespace at `path` and reads its cookie.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        on_thread(move || open(&path)).await?
    }

    /// Unique until the machine reboots.
    pub const fn cookie(&self) -> NetnsCookie {
        self.cookie
    }

    /// Runs `work` in the namespace, on a thread that ends with it.
    pub async fn run<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let fd = Arc::clone(&self.fd);
        on_thread(move || {
            enter(&fd)?;
            Ok(work())
        })
        .await?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

async fn on_thread<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            // The caller may have been dropped; then nobody wants the result.
            drop(sender.send(work()));
        })
        .map_err(Error::Thread)?;
    receiver.await.map_err(|_| Error::Panicked)
}

/// Runtimes say /var/run/netns, which is /run/netns on every node, and in no container
/// (<https://refspecs.linuxfoundation.org/FHS_3.0/fhs/ch05s13.html>).
fn at_run(path: &Path) -> PathBuf {
    match path.strip_prefix("/var/run") {
        Ok(below) => Path::new("/run").join(below),
        Err(_) => path.to_owned(),
    }
}

/// Only on a thread that ends afterwards.
fn open(path: &Path) -> Result<Netns, Error> {
    let opened = File::open(at_run(path)).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })?;
    if fstatfs(&opened).map(|s| s.filesystem_type()) != Ok(NSFS_MAGIC) {
        return Err(Error::NotNamespace {
            path: path.to_owned(),
        });
    }
    enter(&opened)?;
    Ok(Netns {
        fd: Arc::new(opened),
        cookie: current_cookie()?,
    })
}

fn enter(namespace: &File) -> Result<(), Error> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(Error::Enter)
}

/// The cookie of the namespace that the calling thread is in.
pub fn current_cookie() -> Result<NetnsCookie, Error> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let any = socket::socket(AddressFamily::Unix, SockType::Datagram, flags, None);
    let any = any.map_err(Error::Cookie)?;
    let cookie = socket::getsockopt(&any, CookieOption).map_err(Error::Cookie)?;
    Ok(NetnsCookie(cookie))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNetns;

    #[tokio::test]
    async fn a_namespace_is_told_apart_from_ours_and_from_what_is_left_of_one() {
        let pod = TestNetns::new("netns");
        let netns = Netns::open(pod.path())
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let here = current_cookie().unwrap_or_else(|e| panic!("{e}"));
        assert_ne!(netns.cookie(), here);
        let inside = netns.run(current_cookie).await;
        assert_eq!(inside.ok().and_then(Result::ok), Some(netns.cookie()));

        let left = tempfile::NamedTempFile::new().unwrap_or_else(|e| panic!("{e}"));
        let got = Netns::open(left.path()).await;
        assert!(matches!(got, Err(Error::NotNamespace { .. })), "{got:?}");
    }

    #[test]
    fn var_run_is_run() {
        assert_eq!(
            at_run(Path::new("/var/run/netns/a")),
            Path::new("/run/netns/a")
        );
        assert_eq!(at_run(Path::new("/x/var/run")), Path::new("/x/var/run"));
    }

    #[tokio::test]
    async fn a_panic_in_the_namespace_costs_that_call_only() {
        let pod = TestNetns::new("panic");
        let netns = Netns::open(pod.path())
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let got = netns.run(|| panic!("on purpose")).await;
        assert!(matches!(got, Err::<(), _>(Error::Panicked)));
    }
}

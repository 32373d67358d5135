// SPDX-License-Identifier: Apache-2.0
//! The sealed memfds with the keys of workload identities that a proxy gives to keep for the next
//! one. The agent never reads them.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc};

use culvert_api::{identity::Identity, workload::Workload};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::stat::fstat,
};

/// A key with its certificates takes a few KiB.
const MAX_BYTES: i64 = 1 << 20;

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// The memfds, one for each ServiceAccount.
#[derive(Debug, Default)]
pub struct Keys {
    kept: BTreeMap<Account, (Identity, Arc<OwnedFd>)>,
}

/// The namespace and the name of a ServiceAccount.
type Account = (String, String);

/// What a proxy gave is not kept: its fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not one descriptor.
    #[error("got {got} descriptors, expected one")]
    Descriptors {
        /// How many.
        got: usize,
    },
    /// Another kind of file.
    #[error("got a descriptor that is not a memfd: {0}")]
    NotMemfd(#[source] Errno),
    /// It could still be changed.
    #[error("got a memfd with the seals {got:?}, expected at least {SEALS:?}")]
    Unsealed {
        /// Its seals.
        got: SealFlag,
    },
    /// It would fill the memory.
    #[error("got a memfd of {got} bytes, expected at most {MAX_BYTES}")]
    TooLarge {
        /// Its size.
        got: i64,
    },
    /// No pod of this identity is enrolled here.
    #[error("no pod of {0} is enrolled on this node")]
    Stranger(Identity),
}

// === impl Keys ===

impl Keys {
    /// Keeps a memfd in place of the earlier one of its identity.
    pub fn keep<'a>(
        &mut self,
        identity: Identity,
        fds: Vec<OwnedFd>,
        mut workloads: impl Iterator<Item = &'a Workload>,
    ) -> Result<(), Refused> {
        let fd = one(fds)?;
        check(&fd)?;
        let account = (identity.namespace.clone(), identity.service_account.clone());
        if !workloads.any(|workload| is_of(workload, &account)) {
            return Err(Refused::Stranger(identity));
        }
        self.kept.insert(account, (identity, Arc::new(fd)));
        Ok(())
    }

    /// Lets go of those that none of the workloads needs.
    pub fn retain<'a>(&mut self, workloads: impl Iterator<Item = &'a Workload> + Clone) {
        let needed = |account: &Account| workloads.clone().any(|w| is_of(w, account));
        self.kept.retain(|account, _| needed(account));
    }

    /// All, for a proxy that just connected.
    pub fn all(&self) -> impl Iterator<Item = (&Identity, &Arc<OwnedFd>)> {
        self.kept.values().map(|(identity, fd)| (identity, fd))
    }
}

// === impl Refused ===

impl Refused {
    /// The name that metrics know it by.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Descriptors { .. } => "descriptors",
            Self::NotMemfd(_) => "not_memfd",
            Self::Unsealed { .. } => "unsealed",
            Self::TooLarge { .. } => "too_large",
            Self::Stranger(_) => "stranger",
        }
    }
}

fn is_of(workload: &Workload, (namespace, account): &Account) -> bool {
    workload.namespace == *namespace && workload.service_account == *account
}

fn one(mut fds: Vec<OwnedFd>) -> Result<OwnedFd, Refused> {
    let got = fds.len();
    let one = fds.pop().filter(|_| got == 1);
    one.ok_or(Refused::Descriptors { got })
}

/// Only memfds take all of these seals: other files of a tmpfs have F_SEAL_SEAL alone, files
/// elsewhere none and EINVAL
/// (<https://elixir.bootlin.com/linux/v6.18/source/mm/memfd.c#L240>).
fn check(fd: &OwnedFd) -> Result<(), Refused> {
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(Refused::NotMemfd)?;
    let got = SealFlag::from_bits_retain(seals);
    if !got.contains(SEALS) {
        return Err(Refused::Unsealed { got });
    }
    let got = fstat(fd).map_err(Refused::NotMemfd)?.st_size;
    match got <= MAX_BYTES {
        true => Ok(()),
        false => Err(Refused::TooLarge { got }),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;
    use crate::store::tests::record;

    fn memfd(seals: SealFlag) -> OwnedFd {
        let fd = memfd_create(c"key", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING);
        let mut file = File::from(fd.unwrap_or_else(|e| panic!("{e}")));
        assert!(file.write_all(b"secret").is_ok());
        assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).is_ok());
        file.into()
    }

    fn identity(account: &str) -> Identity {
        Identity {
            trust_domain: "cluster.local".into(),
            namespace: "ns".into(),
            service_account: account.into(),
        }
    }

    #[test]
    fn only_a_sealed_memfd_of_a_local_identity_is_kept() {
        let local = [record("u").workload];
        let mut keys = Keys::default();
        let mut keep = |account, fds| keys.keep(identity(account), fds, local.iter());
        let null = File::open("/dev/null").unwrap_or_else(|e| panic!("{e}"));
        let refused = [
            keep("default", vec![]),
            keep("default", vec![null.into()]),
            keep("default", vec![memfd(SealFlag::F_SEAL_WRITE)]),
            keep("other", vec![memfd(SEALS)]),
        ];
        let labels = refused.map(|refused| refused.map_err(|error| error.label()));
        let expected = ["descriptors", "not_memfd", "unsealed", "stranger"];
        assert_eq!(labels, expected.map(Err));
        assert_eq!(keep("default", vec![memfd(SEALS)]), Ok(()));
        assert_eq!(keep("default", vec![memfd(SEALS)]), Ok(()));
        assert_eq!(keys.all().count(), 1);
        keys.retain(local.iter());
        assert_eq!(keys.all().count(), 1);
        keys.retain([].iter());
        assert_eq!(keys.all().count(), 0);
    }
}

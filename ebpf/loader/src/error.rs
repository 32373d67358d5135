// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, by fault.

use std::{
    error::Error as StdError,
    fmt::{self, Display, Formatter},
    io,
    path::{Path, PathBuf},
};

/// Why a call failed. Each message is complete: it ends in the kernel's own words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine's kernel cannot do what Culvert needs.
    #[error("this node cannot run Culvert's eBPF programs; missing: {}", missing.join("; "))]
    Unsupported {
        /// Each thing that is missing, and what would provide it.
        missing: Vec<String>,
    },
    /// The configured directory cannot hold pins.
    #[error("{} is not in a BPF file system, where eBPF programs are kept alive; mount one (mount -t bpf bpf /sys/fs/bpf) and name a directory in it", dir.display())]
    NotBpffs {
        /// The directory.
        dir: PathBuf,
    },
    /// The configured cgroup is not one of version 2.
    #[error("{} is not a cgroup of version 2, the only kind that connect hooks attach to; name one below the cgroup2 mount", cgroup.display())]
    NotCgroup2 {
        /// The directory.
        cgroup: PathBuf,
    },
    /// What the pod asked to exclude makes no sense or is too much.
    #[error("cannot exclude {what}")]
    Exclusion {
        /// What, and what was expected.
        what: String,
    },
    /// The pod has more addresses than its map holds.
    #[error("the pod has {got} addresses, more than the {max} that its map holds")]
    TooManyAddresses {
        /// How many it has.
        got: usize,
        /// How many there may be.
        max: usize,
    },
    /// The caller's fault: the network namespace was not enrolled.
    #[error("the network namespace {cookie} is not enrolled; call enrol() first")]
    NotEnrolled {
        /// The netns cookie.
        cookie: u64,
    },
    /// The caller's fault: the pod was not attached by this agent.
    #[error("the network namespace {cookie} is not attached; call attach_pod() first")]
    NotAttached {
        /// The netns cookie.
        cookie: u64,
    },
    /// A file operation failed.
    #[error("could not {doing} {}: {source}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused an eBPF object.
    #[error("could not {doing}: {cause}")]
    Kernel {
        /// What was being done.
        doing: String,
        /// The answer, in full.
        cause: Cause,
    },
}

/// Another crate's error with all that it says about itself: aya's errors name the kernel's error
/// only as their source, which a log line would lose.
#[derive(Debug)]
pub struct Cause(Box<dyn StdError + Send + Sync>);

// === impl Error ===

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    pub(crate) fn kernel<E>(doing: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: StdError + Send + Sync + 'static,
    {
        let doing = doing.into();
        move |error| Self::Kernel {
            doing,
            cause: Cause(Box::new(error)),
        }
    }
}

// === impl Cause ===

impl Display for Cause {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut said = self.0.to_string();
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            // Some of them repeat their source.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            next = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("middle: {0}")]
    struct Middle(#[source] io::Error);

    #[test]
    fn a_cause_says_everything_once() {
        let inner = io::Error::other("inner");
        let cause = Cause(Box::new(Outer(Middle(inner))));
        assert_eq!(cause.to_string(), "outer: middle: inner");
    }
}

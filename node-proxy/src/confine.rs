// SPDX-License-Identifier: Apache-2.0
//! What the process gives up before it serves: it parses what strangers send and holds keys.

use std::io;

use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
    },
    unistd::{Uid, geteuid},
};

/// The process has rights that it must not have.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TooPowerful {
    #[error("the proxy must not run as root: start it as a user of its own, as 2102")]
    Root,
    #[error("the proxy must not have capabilities ({set} is {got}): drop all of them")]
    Capabilities { set: String, got: String },
    #[error("could not see which rights this process has, or give them up: {0}")]
    Io(#[from] io::Error),
}

/// Refuses root and capabilities, then sees to it that no key is dumped or read by another process
/// of the same user, that no privilege comes back, and that there are descriptors for many sockets.
pub(crate) fn confine(allow_root: bool) -> Result<(), TooPowerful> {
    if !allow_root {
        refuse_root(geteuid())?;
        refuse_capabilities(&std::fs::read_to_string("/proc/self/status")?)?;
    }
    prctl::set_no_new_privs().map_err(io::Error::from)?;
    prctl::set_dumpable(false).map_err(io::Error::from)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(io::Error::from)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(io::Error::from)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(io::Error::from)?;
    Ok(())
}

fn refuse_root(user: Uid) -> Result<(), TooPowerful> {
    match user.is_root() {
        true => Err(TooPowerful::Root),
        false => Ok(()),
    }
}

/// `status` is that of proc_pid_status(5).
fn refuse_capabilities(status: &str) -> Result<(), TooPowerful> {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(set)?.strip_prefix(':'));
        let got = line.map(str::trim).unwrap_or("unknown");
        if u64::from_str_radix(got, 16) != Ok(0) {
            let (set, got) = (set.to_owned(), got.to_owned());
            return Err(TooPowerful::Capabilities { set, got });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_any_capability_are_refused() {
        assert!(refuse_root(Uid::from_raw(0)).is_err());
        assert!(refuse_root(Uid::from_raw(2102)).is_ok());
        let status = |effective| {
            format!("CapInh:\t0\nCapPrm:\t0000\nCapEff:\t{effective}\nCapBnd:\tff\nCapAmb:\t0\n")
        };
        assert!(refuse_capabilities(&status("0000000000000000")).is_ok());
        assert!(refuse_capabilities(&status("0000000000002000")).is_err());
        assert!(refuse_capabilities("Name:\tculvert-proxy\n").is_err());
    }
}

// SPDX-License-Identifier: Apache-2.0
//! The sysctls of a steered pod's namespace.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Whichever procfs it is, it shows the namespace of who looks. That of a container is read-only
/// unless the container is privileged: there the node's is mounted beside it
/// (<https://elixir.bootlin.com/linux/v6.18/source/net/sysctl_net.c#L30>).
const ROOTS: [&str; 2] = ["/host/proc/sys/net", "/proc/sys/net"];

/// What is set, and why:
/// - `tcp_fwmark_accept`: what the application accepts from the proxy takes the mark of the SYN,
///   so that its answers find the way back to the proxy
/// - `fwmark_reflect`: so does the RST of a closed port
/// - `tcp_migrate_req`: what waits in the backlog of a replaced listener moves to the new one
///
/// (<https://elixir.bootlin.com/linux/v6.18/source/Documentation/networking/ip-sysctl.rst>)
const WANTED: [&str; 4] = [
    "ipv4/tcp_fwmark_accept",
    "ipv4/fwmark_reflect",
    "ipv4/tcp_migrate_req",
    "ipv6/fwmark_reflect",
];

/// The values that the sysctls had before the pod was enrolled.
pub type Before = BTreeMap<String, String>;

/// A sysctl could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "could not set the sysctl net/{name} of the pod's namespace: {source} (is /proc/sys writable for the agent?)"
)]
pub struct Error {
    /// Which, below /proc/sys/net.
    pub name: String,
    /// What the kernel said.
    pub source: io::Error,
}

/// Reads what is there. To be called in the pod's namespace, as all of this module.
pub fn read() -> Result<Before, Error> {
    let mut before = Before::new();
    for name in WANTED {
        match fs::read_to_string(path(name)) {
            Ok(value) => drop(before.insert(name.to_owned(), value.trim().to_owned())),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed(name, source)),
        }
    }
    Ok(before)
}

/// Sets what steering needs.
pub fn set() -> Result<(), Error> {
    for (name, value) in read()? {
        if value != "1" {
            write(&name, "1")?;
        }
    }
    Ok(())
}

/// Puts back what was there before.
pub fn restore(before: &Before) -> Result<(), Error> {
    before
        .iter()
        .try_for_each(|(name, value)| write(name, value))
}

/// What is not as [`set`] left it, in words.
pub fn differences() -> Result<Vec<String>, Error> {
    let now = read()?.into_iter();
    let other = now.filter(|(_, value)| value != "1");
    Ok(other
        .map(|(name, value)| format!("the sysctl net/{name} is {value}, not 1"))
        .collect())
}

fn path(name: &str) -> PathBuf {
    let root = ROOTS.iter().find(|root| Path::new(root).is_dir());
    Path::new(root.unwrap_or(&ROOTS[1])).join(name)
}

fn write(name: &str, value: &str) -> Result<(), Error> {
    fs::write(path(name), value).map_err(|source| failed(name, source))
}

fn failed(name: &str, source: io::Error) -> Error {
    Error {
        name: name.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{netns::Netns, testing::TestNetns};

    #[tokio::test]
    async fn sysctls_are_set_and_put_back() {
        let pod = TestNetns::new("sysctl");
        let netns = Netns::open(pod.path())
            .await
            .unwrap_or_else(|e| panic!("{e}"));
        let work = || {
            let before = read()?;
            assert_eq!(differences()?.len(), before.len());
            set()?;
            set()?;
            assert_eq!(differences()?, Vec::<String>::new());
            restore(&before)?;
            assert_eq!(read()?, before);
            Ok::<_, Error>(())
        };
        let done = netns.run(work).await.unwrap_or_else(|e| panic!("{e}"));
        done.unwrap_or_else(|e| panic!("{e}"));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! A pod's `/etc/hosts` and `/etc/resolv.conf`.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::FileExt,
    path::Path,
};

use k8s_openapi::api::core::v1::HostAlias;

const LOCAL: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/// The lines about the pod itself.
pub fn own(hostname: &str, ips: &[IpAddr], aliases: &[HostAlias]) -> String {
    let mut text = LOCAL.to_owned();
    for ip in ips {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{ip} {hostname}");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join(" ");
        let _ = writeln!(text, "{} {names}", alias.ip);
    }
    text
}

/// There is no DNS in a sandbox, and to ask the machine's from a pod would take its clients many
/// seconds: here nothing listens, and a name that is in no `/etc/hosts` is unknown at once.
pub fn resolv_conf(namespace: &str) -> String {
    format!("search {namespace}.svc.cluster.local svc.cluster.local\nnameserver 127.0.0.1\n")
}

/// Writes the file in place: it is mounted in pods, which would not see another one of its name. A
/// reader at the same moment sees whole lines of the old or of the new text.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).ok().as_deref() == Some(text) {
        return Ok(());
    }
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_file_stays_the_same_one() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let path = dir.path().join("pods/hosts");
        let inode = |text: &str| {
            write(&path, text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some(text));
            fs::metadata(&path).map(|meta| meta.ino()).ok()
        };
        assert_eq!(inode("a long text\n"), inode("short\n"));
    }

    #[test]
    fn a_pod_knows_itself_and_its_aliases() {
        let alias = HostAlias {
            ip: "192.0.2.1".into(),
            hostnames: Some(vec!["a".into(), "b".into()]),
        };
        let text = own("web-0", &[[10, 244, 1, 2].into()], &[alias]);
        assert!(text.ends_with("10.244.1.2 web-0\n192.0.2.1 a b\n"));
    }
}

// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::sandbox::{
    cgroup::{self, Cgroups},
    layout::Name,
    netns::{self, Netns},
};

/// A namespace and a cgroup to start processes in.
struct Rig {
    dir: tempfile::TempDir,
    netns: Netns,
    cgroups: Cgroups,
}

impl Rig {
    fn new(name: &str) -> Self {
        let name = format!("cvt{}-{name}", std::process::id());
        let netns = Netns::create(&name).unwrap_or_else(|e| panic!("{e}"));
        let name: Name = name.parse().unwrap_or_else(|e| panic!("{e}"));
        let cgroups = Cgroups::find(&name).unwrap_or_else(|e| panic!("{e}"));
        Self {
            dir: tempfile::tempdir().unwrap_or_else(|e| panic!("{e}")),
            netns,
            cgroups: cgroups.unwrap_or_else(|| panic!("no cgroup2 is mounted")),
        }
    }

    fn shell(&self, script: &str) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            args: ["-c", script].map(Into::into).into(),
            env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
            cwd: Some("/".into()),
            log: self.dir.path().join("log"),
            cgroup: self.cgroups.control(),
            netns: self.netns.descriptor().unwrap_or_else(|e| panic!("{e}")),
            unprivileged: None,
            private: None,
            files: (100, 200),
        }
    }

    fn run(&self, launch: Launch) -> String {
        let mut command = launch.command().unwrap_or_else(|e| panic!("{e}"));
        let status = command.status().unwrap_or_else(|e| panic!("{e}"));
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        assert!(status.success(), "{log}");
        log
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = netns::remove(&self.netns.name);
        let _ = cgroup::remove(self.cgroups.base(), std::time::Duration::from_secs(1));
        self.cgroups.remove_parent();
    }
}

#[test]
fn programs_are_found_as_a_shell_finds_them() {
    let found = find_program("sh", "/nonexistent:/bin").ok();
    assert_eq!(found, Some("/bin/sh".into()));
    assert_eq!(find_program("./x", "").ok(), Some("./x".into()));
    assert!(find_program("sh", "/nonexistent").is_err());
}

#[test]
fn the_proxy_has_no_privilege_and_can_get_none() {
    let rig = Rig::new("proxy");
    let launch = Launch {
        unprivileged: Some(2102),
        ..rig.shell("cat /proc/self/status; ulimit -n; ulimit -Hn; cat /proc/self/cgroup")
    };
    let log = rig.run(launch);
    let field = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(field("Uid:"), "2102 2102 2102 2102");
    assert_eq!(field("Gid:"), "2102 2102 2102 2102");
    assert_eq!(
        (field("Groups:"), field("NoNewPrivs:")),
        (String::new(), "1".into())
    );
    assert!(log.contains("\n100\n200\n"), "{log}");
    assert!(log.contains("/control"), "{log}");
}

#[test]
fn a_container_sees_its_own_hosts_and_name() {
    let rig = Rig::new("private");
    let file = |name: &str, text: &str| {
        let path = rig.dir.path().join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("{e}"));
        path
    };
    let private = Private::New {
        hosts: file("hosts", "192.0.2.1 web\n"),
        resolv_conf: file("resolv.conf", "nameserver 127.0.0.1\n"),
        hostname: "web-0".into(),
    };
    let launch = Launch {
        private: Some(private),
        ..rig.shell(
            "cat /etc/hosts /etc/resolv.conf; hostname; ls /sys/class/net /proc/self/net/dev_snmp6",
        )
    };
    let log = rig.run(launch);
    assert!(
        log.starts_with("192.0.2.1 web\nnameserver 127.0.0.1\nweb-0\n"),
        "{log}"
    );
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert!(
        !hosts.contains("192.0.2.1 web"),
        "the machine's own file was changed"
    );
}

// SPDX-License-Identifier: Apache-2.0
use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use nix::mount::{MsFlags, mount};

use super::*;
use crate::sandbox::{
    fabric::{self, Fabric},
    families::{IpFamilies, IpFamily},
    layout::{Name, NodeId},
    netns::Netns,
};

/// A sandbox without a supervisor, as one that was killed leaves it.
struct Rig {
    layout: Layout,
    cgroups: Cgroups,
}

impl Rig {
    fn new(name: &str) -> Self {
        let name = format!("cvt{}-{name}", std::process::id());
        let name: Name = name.parse().unwrap_or_else(|e| panic!("{e}"));
        let cgroups = Cgroups::find(&name).unwrap_or_else(|e| panic!("{e}"));
        let layout = Layout::new(name);
        fs::create_dir_all(layout.netns_records()).unwrap_or_else(|e| panic!("{e}"));
        Self {
            layout,
            cgroups: cgroups.unwrap_or_else(|| panic!("no cgroup2 is mounted")),
        }
    }

    fn fabric(&self, nodes: u8) -> (Fabric, Vec<Netns>) {
        let fabric =
            Fabric::up(&self.layout, IpFamilies::default()).unwrap_or_else(|e| panic!("{e}"));
        let node = |id| {
            fabric
                .add_node(&self.layout, id)
                .unwrap_or_else(|e| panic!("{e}"))
        };
        let nodes = NodeId::first(nodes).map(node).collect();
        (fabric, nodes)
    }

    /// A process in a cgroup below the sandbox's, and a mount below its directory.
    fn litter(&self) -> Child {
        let cgroup = self.cgroups.kubepods(NodeId(1)).join("pod");
        fs::create_dir_all(&cgroup).unwrap_or_else(|e| panic!("{e}"));
        let child = Command::new("sleep").arg("600").spawn();
        let child = child.unwrap_or_else(|e| panic!("{e}"));
        let moved = fs::write(cgroup.join("cgroup.procs"), child.id().to_string());
        moved.unwrap_or_else(|e| panic!("{e}"));
        let bpf = self.layout.node(NodeId(1)).bpf();
        fs::create_dir_all(&bpf).unwrap_or_else(|e| panic!("{e}"));
        const NONE: Option<&Path> = None;
        let mounted = mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), NONE);
        mounted.unwrap_or_else(|e| panic!("{e}"));
        child
    }

    fn is_clean(&self) -> bool {
        let prefix = format!("cv-{}-", self.layout.name);
        let names = netns::list().unwrap_or_else(|e| panic!("{e}"));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_else(|e| panic!("{e}"));
        let root = self.layout.root();
        !names.iter().any(|name| name.starts_with(&prefix))
            && !mounts.contains(&root.display().to_string())
            && !root.exists()
            && !self.cgroups.base().exists()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = remove(&self.layout, Some(&self.cgroups));
    }
}

#[test]
fn everything_is_removed_and_can_be_made_again() {
    let rig = Rig::new("again");
    for _ in 0..2 {
        fs::create_dir_all(rig.layout.netns_records()).unwrap_or_else(|e| panic!("{e}"));
        let _nodes = rig.fabric(2);
        let mut child = rig.litter();
        assert!(remove(&rig.layout, Some(&rig.cgroups)).is_ok_and(|existed| existed));
        assert!(child.wait().is_ok_and(|status| !status.success()));
        assert!(rig.is_clean());
        assert!(remove(&rig.layout, Some(&rig.cgroups)).is_ok_and(|existed| !existed));
    }
}

#[test]
fn a_new_supervisor_clears_what_is_in_its_way() {
    let rig = Rig::new("clear");
    drop(rig.fabric(1));
    let mut child = rig.litter();
    fs::write(rig.layout.state(), "{}").unwrap_or_else(|e| panic!("{e}"));
    clear(&rig.layout, &rig.cgroups).unwrap_or_else(|e| panic!("{e}"));
    assert!(child.wait().is_ok_and(|status| !status.success()));
    assert!(rig.layout.state().exists());
    assert!(!rig.layout.netns_records().exists());
    fs::create_dir_all(rig.layout.netns_records()).unwrap_or_else(|e| panic!("{e}"));
    drop(rig.fabric(1));
}

#[test]
fn a_sandbox_does_not_touch_another_one_whose_name_begins_like_its_own() {
    let (short, long) = (Rig::new("x"), Rig::new("x-y"));
    drop((short.fabric(1), long.fabric(1)));
    assert!(remove(&short.layout, Some(&short.cgroups)).is_ok());
    assert!(short.layout.name.as_str().len() < long.layout.name.as_str().len());
    assert!(Netns::open(&long.layout.name.fabric_netns()).is_ok());
    assert!(Netns::open(&short.layout.name.fabric_netns()).is_err());
}

#[test]
fn nodes_reach_each_other_and_the_pods_behind() {
    let rig = Rig::new("net");
    let (_fabric, nodes) = rig.fabric(2);
    let routed = fabric::route(&nodes[0], IpFamilies::default(), &[NodeId(2)]);
    routed.unwrap_or_else(|e| panic!("{e}"));
    for family in [IpFamily::V4, IpFamily::V6] {
        let listener = nodes[1].run(move || TcpListener::bind((NodeId(2).addr(family).0, 0)));
        let listener = listener.unwrap_or_else(|e| panic!("{e}"));
        let addr = listener.local_addr().unwrap_or_else(|e| panic!("{e}"));
        let client = nodes[0].run(move || TcpStream::connect(addr));
        assert!(client.is_ok(), "{client:?}");
        let peer = listener.accept().map(|(_, peer)| peer.ip());
        assert_eq!(peer.ok(), Some(NodeId(1).addr(family).0));
    }
    let routes = nodes[0].run(|| {
        let mut routes = String::new();
        fs::File::open("/proc/thread-self/net/route")?.read_to_string(&mut routes)?;
        Ok(routes)
    });
    // 10.244.2.0 by 10.245.0.2, in the byte order of the machine.
    let route = format!(
        "{:08X}\t{:08X}",
        u32::from_ne_bytes([10, 244, 2, 0]),
        u32::from_ne_bytes([10, 245, 0, 2])
    );
    assert!(routes.is_ok_and(|routes| routes.contains(&route)));
}

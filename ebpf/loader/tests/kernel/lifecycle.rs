// SPDX-License-Identifier: Apache-2.0
//! Agents come and go.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
};

use culvert_ebpf_loader::{Counters, Error, Exclusions, Node, NodeOptions, probe_kernel};

use super::support::{Bpffs, Cgroup, Ear, Ears, Must, Net, World, addr, dial};

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).must("read a directory").next().is_none()
}

#[test]
fn this_kernel_will_do() {
    probe_kernel().must("probe");
}

#[test]
fn steering_goes_on_without_an_agent_and_the_next_one_swaps_listeners() {
    let mut world = World::new();
    world.node = None;
    let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let _ = world.ears.out4.accept();
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = world.ears.in4.accept();

    world.load();
    assert_eq!(world.node().pinned_pods().must("pods"), [world.cookie]);
    let old = std::mem::replace(&mut world.ears, Ears::new(&world.pod));
    world.attach(&Exclusions::default());
    let cookie = world.cookie;
    world
        .node()
        .enrol(cookie, &Exclusions::default())
        .must("enrol");
    let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let _ = world.ears.out4.accept();
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = world.ears.in4.accept();
    assert!(old.out4.hears_nothing() && old.in4.hears_nothing());
    let expected = Counters {
        steered_out: 2,
        delivered_out: 2,
        steered_in: 2,
        ..Counters::default()
    };
    assert_eq!(world.counters(), expected, "the counters go on");
}

#[test]
fn exemption_and_exclusions_outlive_the_agent() {
    let mut world = World::new();
    let server = world.wire.run(|| Ear::plain("10.0.0.2:8080"));
    let socket = world.app_socket(socket2::Domain::IPV4);
    world
        .node()
        .exempt(std::os::fd::AsFd::as_fd(&socket))
        .must("exempt");
    let cookie = world.cookie;
    let exclusions = Exclusions {
        outbound_ports: vec![8080..=8080],
        ..Exclusions::default()
    };
    world.node().enrol(cookie, &exclusions).must("enrol");
    world.load();
    super::support::connect(&socket, "10.0.0.2:8080").must("connect");
    let _ = server.accept();
    let _app = world.app(|| dial("10.0.0.2:8080")).must("connect");
    let _ = server.accept();
    assert_eq!(
        (world.counters().exempt, world.counters().excluded_out),
        (1, 1)
    );
    // The new agent knows what the old one excluded.
    world
        .node()
        .enrol(cookie, &Exclusions::default())
        .must("enrol");
    let _app = world.app(|| dial("10.0.0.2:8080")).must("connect");
    let _ = world.ears.out4.accept();
}

#[test]
fn nothing_is_left_of_a_detached_pod() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let server = world.wire.run(|| Ear::plain("10.0.0.2:8080"));
    let cookie = world.cookie;
    for _ in 0..2 {
        world.node().withdraw(cookie).must("withdraw");
        world.node().detach_pod(cookie).must("detach");
        assert!(world.node().pinned_pods().must("pods").is_empty());
        assert!(is_empty(&world.options().dir.join("v1/pods")));
    }
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = app.accept();
    let _app = world.app(|| dial("10.0.0.2:8080")).must("connect");
    let _ = server.accept();
    let lost = world.node().set_own(cookie, &[]);
    assert!(matches!(lost, Err(Error::NotAttached { .. })));
    let lost = world.node().set_up(cookie, true);
    assert!(matches!(lost, Err(Error::NotEnrolled { .. })));
}

#[test]
fn a_pod_that_was_half_attached_is_attached_again() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let cookie = world.cookie;
    let dir = world.options().dir.join(format!("v1/pods/{cookie}"));
    // An agent that died before it pinned the link, or before it moved the pin into place.
    fs::rename(dir.join("link"), dir.join("link_new")).must("rename");
    world.load();
    assert_eq!(world.node().pinned_pods().must("pods"), [cookie]);
    world.attach(&Exclusions::default());
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = world.ears.in4.accept();
    assert!(dir.join("link").exists() && !dir.join("link_new").exists());
    world.node().detach_pod(cookie).must("detach");
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = app.accept();
}

#[test]
fn a_pod_whose_namespace_is_gone_can_be_detached() {
    let mut world = World::new();
    let cookie = world.cookie;
    world.pod = Net::new();
    world.ears = Ears::new(&world.pod);
    world.node().withdraw(cookie).must("withdraw");
    world.node().detach_pod(cookie).must("detach");
    assert!(world.node().pinned_pods().must("pods").is_empty());
}

#[test]
fn what_other_versions_pinned_is_collected_and_detached() {
    let mut world = World::new();
    let dir = world.options().dir;
    world.node = None;
    fs::rename(dir.join("v1"), dir.join("v999")).must("rename");
    fs::create_dir(dir.join("venus")).must("make a directory");
    world.load();
    assert_eq!(world.node().collect_other_versions().must("collect"), 1);
    assert!(!dir.join("v999").exists() && dir.join("venus").exists());
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = app.accept();
    let _app = world.app(|| dial("10.0.0.1:8080")).must("connect");
    assert_eq!(world.counters(), Counters::default());
}

#[test]
fn an_old_and_a_new_version_are_attached_together_and_the_new_one_wins() {
    let mut world = World::new();
    let dir = world.options().dir;
    world.node = None;
    fs::rename(dir.join("v1"), dir.join("v999")).must("rename");
    let old = std::mem::replace(&mut world.ears, Ears::new(&world.pod));
    world.load();
    world.attach(&Exclusions::default());
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = world.ears.in4.accept();
    assert!(old.in4.hears_nothing());
    assert_eq!(world.node().collect_other_versions().must("collect"), 1);
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = world.ears.in4.accept();
}

#[test]
fn a_dead_pod_is_told_from_a_live_one_of_any_version() {
    let mut world = World::new();
    let (dir, cookie) = (world.options().dir, world.cookie);
    assert!(world.node().is_live(cookie).must("look"));
    assert!(!world.node().is_live(cookie + 1).must("look"));
    world.node = None;
    fs::rename(dir.join("v1"), dir.join("v999")).must("rename");
    world.load();
    let left = |world: &mut World| world.node().left_to_other_versions().must("look");
    assert_eq!(left(&mut world), [cookie]);
    world.attach(&Exclusions::default());
    assert_eq!(left(&mut world), Vec::<u64>::new());
    // The listeners keep the namespace alive as well.
    world.pod = super::support::Net::new();
    world.ears = Ears::new(&world.pod);
    let dead = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        !world.node().is_live(cookie).must("look")
    });
    assert!(dead);
}

#[test]
fn two_nodes_on_one_kernel() {
    let (mut one, mut two) = (World::new(), World::new());
    for world in [&mut one, &mut two] {
        let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
        let _ = world.ears.out4.accept();
        assert_eq!(world.counters().steered_out, 1);
        assert_eq!(world.node().pinned_pods().must("pods"), [world.cookie]);
    }
    // One agent's end is not the other's; not even in the same cgroup and bpffs.
    let options = NodeOptions {
        dir: one.bpffs.path().join("second"),
        ..one.options()
    };
    let mut second = Node::load(&options).must("load");
    second
        .enrol(two.cookie, &Exclusions::default())
        .must("enrol");
    let _app = one.app(|| dial("192.0.2.10:80")).must("connect");
    let _ = one.ears.out4.accept();
    assert_eq!(one.counters().steered_out, 2);
    assert_eq!(
        second.counters(two.cookie).must("counters"),
        Counters::default()
    );
}

#[test]
fn another_cgroup_after_a_restart() {
    let mut world = World::new();
    let old = std::mem::replace(&mut world.pods_cgroup, Cgroup::new());
    world.load();
    let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let _ = world.ears.out4.accept();
    let outside = old.run(&world.pod, || dial("127.0.0.1:1")).err();
    assert!(outside.is_some());
    let server = world.wire.run(|| Ear::plain("10.0.0.2:8080"));
    let _app = old
        .run(&world.pod, || dial("10.0.0.2:8080"))
        .must("connect");
    let _ = server.accept();
    // The cgroup of the hooks was removed.
    world.pods_cgroup = Cgroup::new();
    drop(old);
    world.load();
    let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let _ = world.ears.out4.accept();
}

#[test]
fn without_a_kubelet_cgroup_nothing_is_noted() {
    let mut world = World::new();
    world.node = None;
    let options = NodeOptions {
        kubelet_cgroup: None,
        ..world.options()
    };
    world.node = Some(Node::load(&options).must("load"));
    let _probe = world.kubelet(|| dial("10.0.0.1:8080")).must("connect");
    let _ = world.ears.in4.accept();
}

#[test]
fn a_kubelets_cgroup_that_was_made_again_is_followed() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let path = world.kubelet_cgroup.path().to_owned();
    let follow = |world: &mut World| world.node().follow_kubelet(Some(&path)).must("follow");
    assert!(!follow(&mut world));
    let open = world.kubelet(|| dial("10.0.0.1:8080")).must("connect");
    let _ = app.accept();
    // The open probe keeps the old cgroup, and the link's hold of it, for as long as it lives.
    world.kubelet_cgroup.make_again();
    let _unknown = world.kubelet(|| dial("10.0.0.1:8080")).must("connect");
    let _ = world.ears.in4.accept();
    assert!(follow(&mut world));
    let _probe = world.kubelet(|| dial("10.0.0.1:8080")).must("connect");
    let _ = app.accept();
    assert_eq!(world.counters().passed_probe, 2);
    drop(open);
    world.kubelet_cgroup.make_again();
    assert!(follow(&mut world) && !follow(&mut world));
    let _probe = world.kubelet(|| dial("10.0.0.1:8080")).must("connect");
    let _ = app.accept();
}

#[test]
fn a_kubelets_cgroup_that_comes_late_or_goes_is_followed() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let path = world.kubelet_cgroup.path().to_owned();
    world.node = None;
    let options = NodeOptions {
        kubelet_cgroup: None,
        ..world.options()
    };
    world.node = Some(Node::load(&options).must("load"));
    assert!(!world.node().follow_kubelet(None).must("follow"));
    assert!(world.node().follow_kubelet(Some(&path)).must("follow"));
    world.attach(&Exclusions::default());
    let _probe = world.kubelet(|| dial("10.0.0.1:8080")).must("connect");
    let _ = app.accept();
    world.kubelet_cgroup.remove();
    let gone = world.node().follow_kubelet(Some(&path));
    assert!(matches!(gone, Err(Error::NotCgroup2 { .. })), "{gone:?}");
    assert!(world.node().follow_kubelet(None).must("follow"));
    // After the end nothing is attached again.
    world.kubelet_cgroup = Cgroup::new();
    let path = world.kubelet_cgroup.path().to_owned();
    world.node().remove_all().must("remove");
    assert!(!world.node().follow_kubelet(Some(&path)).must("follow"));
    assert!(!world.options().dir.exists());
}

#[test]
fn mistakes_in_the_options_are_named() {
    let (bpffs, cgroup) = (Bpffs::new(), Cgroup::new());
    let options = |dir: &Path, cgroup: &Path| NodeOptions {
        dir: dir.to_owned(),
        cgroup: cgroup.to_owned(),
        kubelet_cgroup: None,
        debug: false,
    };
    let plain = tempfile::tempdir().must("make a directory");
    let wrong = Node::load(&options(&plain.path().join("a/b"), cgroup.path()));
    assert!(matches!(wrong, Err(Error::NotBpffs { .. })));
    assert!(is_empty(plain.path()));
    let wrong = Node::load(&options(bpffs.path(), plain.path()));
    assert!(matches!(wrong, Err(Error::NotCgroup2 { .. })));
}

#[test]
fn a_pods_mistake_leaves_it_as_it_was() {
    let mut world = World::new();
    let own = vec![addr("10.0.0.1:0").ip()];
    let exclusions = Exclusions {
        inbound_ports: vec![1..=10; 3],
        subnets: vec![culvert_ebpf_loader::Subnet {
            addr: own[0],
            prefix_len: 99,
        }],
        ..Exclusions::default()
    };
    let options = culvert_ebpf_loader::PodOptions {
        cookie: world.cookie,
        netns: world.pod.fd(),
        listeners: [None; 4],
        own: &own,
        exclusions: &exclusions,
    };
    let node = world.node.as_mut().unwrap_or_else(|| panic!("no agent"));
    assert!(matches!(
        node.attach_pod(&options),
        Err(Error::Exclusion { .. })
    ));
    assert!(matches!(
        node.enrol(world.cookie, &exclusions),
        Err(Error::Exclusion { .. })
    ));
    let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let _ = world.ears.out4.accept();
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = world.ears.in4.accept();
}

#[test]
fn a_pod_that_could_not_be_attached_leaves_nothing() {
    let mut world = World::new();
    let net = Net::new();
    let exclusions = Exclusions {
        inbound_ports: (0..2000).map(|n| (2 * n + 1)..=(2 * n + 1)).collect(),
        ..Exclusions::default()
    };
    let options = culvert_ebpf_loader::PodOptions {
        cookie: net.cookie(),
        netns: net.fd(),
        listeners: [None; 4],
        own: &[],
        exclusions: &exclusions,
    };
    let wrong = world.node().attach_pod(&options);
    assert!(matches!(wrong, Err(Error::Exclusion { .. })));
    assert_eq!(world.node().pinned_pods().must("pods"), [world.cookie]);
}

#[test]
fn the_programs_say_what_they_do_when_asked() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // The only subscriber of this process: the programs' log is read on another thread.
    tracing::subscriber::set_global_default(subscriber).must("subscribe");
    let mut world = World::new();
    world.node = None;
    let options = NodeOptions {
        debug: true,
        ..world.options()
    };
    world.node = Some(Node::load(&options).must("load"));
    world.attach(&Exclusions::default());
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let _client = world.wire.run(|| dial("[fd00::1]:8081")).must("connect");
    let _probe = world.kubelet(|| dial("10.0.0.1:8080")).must("connect");
    let _ = app.accept();
    // Dropping the node reads the rest.
    world.node = None;
    let said = log.read();
    for line in [
        format!("Steered netns cookie {} to ::ffff:192.0.2.10", world.cookie),
        "Gave ::ffff:10.0.0.1 to ::ffff:192.0.2.10 port 80 to listener 0".to_owned(),
        "Gave fd00::2 to fd00::1 port 8081 to listener 3".to_owned(),
        "Noted a probe of ::ffff:10.0.0.1 port 8080: 0".to_owned(),
    ] {
        assert!(said.contains(&line), "{line:?} is not in:\n{said}");
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn read(&self) -> String {
        let bytes = self.0.lock().must("lock");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().must("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

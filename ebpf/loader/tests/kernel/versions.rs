// SPDX-License-Identifier: Apache-2.0
//! An agent of an earlier release and its successor: the earlier one's objects and pins are those
//! that `tests/recorded` has.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, MapInfo, SkStorage, SockMap},
    programs::{CgroupAttachMode, CgroupSockAddr, SkLookup, links::FdLink},
};
use culvert_ebpf_abi::{
    ABI_VERSION, Address, map,
    pod::{ConnectCounters, ENROLLED, State, UP},
    program,
};
use culvert_ebpf_loader::Exclusions;

use super::support::{Ear, Ears, Must, World, addr, connect, dial, disconnect};

const NODE_MAPS: [&str; 7] = [
    map::PODS,
    map::CONNECTS,
    map::OUT_SUBNETS,
    map::OUT_PORTS,
    map::EXEMPT,
    map::PROBES,
    map::LOGS,
];
const POD_MAPS: [&str; 5] = [
    map::LISTENERS,
    map::OWN,
    map::LOOKUPS,
    map::IN_SUBNETS,
    map::IN_PORTS,
];

fn recorded(file: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/recorded/0.1.0");
    dir.join(file)
}

fn load(object: &Path, maps: &[&str], pins: &Path) -> Ebpf {
    fs::create_dir_all(pins).must("make a directory");
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader.override_global("AYA_LOG_LEVEL", &0_u8, true);
    for name in maps {
        loader.map_pin_path(name, pins.join(name));
    }
    loader.load_file(object).must("load a recorded object")
}

fn taken<M>(object: &mut Ebpf, name: &str) -> M
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = object.take_map(name).unwrap_or_else(|| panic!("no {name}"));
    M::try_from(map).must(name)
}

/// The agent of the earlier release, as far as it steers one pod.
struct OldAgent {
    exempt: SkStorage<MapData, u32>,
}

impl OldAgent {
    fn steer(world: &World, version: &Path) -> Self {
        let pins = version.join("node");
        let mut node = load(&recorded("ebpf/node.bpf.o"), &NODE_MAPS, &pins);
        for (name, pin) in [
            (program::CONNECT4, "connect4"),
            (program::CONNECT6, "connect6"),
        ] {
            let program = node
                .program_mut(name)
                .unwrap_or_else(|| panic!("no {name}"));
            let program: &mut CgroupSockAddr = program.try_into().must(name);
            program.load().must(name);
            let cgroup = File::open(world.pods_cgroup.path()).must("open the cgroup");
            let id = program.attach(cgroup, CgroupAttachMode::Single).must(name);
            let link = program.take_link(id).must(name);
            FdLink::try_from(link)
                .must(name)
                .pin(pins.join(pin))
                .must(name);
        }
        let mut pods: HashMap<MapData, u64, State> = taken(&mut node, map::PODS);
        let mut counters: HashMap<MapData, u64, ConnectCounters> = taken(&mut node, map::CONNECTS);
        let state = State {
            flags: ENROLLED | UP,
            pad: 0,
        };
        pods.insert(world.cookie, state, 0).must("enrol");
        counters
            .insert(world.cookie, ConnectCounters::default(), 0)
            .must("count");
        Self::attach(world, &version.join("pods").join(world.cookie.to_string()));
        Self {
            exempt: taken(&mut node, map::EXEMPT),
        }
    }

    fn attach(world: &World, pins: &Path) {
        let mut pod = load(&recorded("ebpf/pod.bpf.o"), &[map::LOOKUPS], pins);
        let mut listeners: SockMap<MapData> = taken(&mut pod, map::LISTENERS);
        for (slot, listener) in (0..).zip(world.ears.fds()) {
            if let Some(listener) = listener {
                listeners.set(slot, &listener, 0).must("set a listener");
            }
        }
        let mut own: HashMap<MapData, Address, u32> = taken(&mut pod, map::OWN);
        for ip in ["10.0.0.1:0", "[fd00::1]:0"] {
            own.insert(Address::from(addr(ip).ip()), 1, 0)
                .must("set an address");
        }
        let program = pod
            .program_mut(program::LOOKUP)
            .unwrap_or_else(|| panic!("no program"));
        let program: &mut SkLookup = program.try_into().must("sk_lookup");
        program.load().must("load");
        let id = program.attach(world.pod.fd()).must("attach");
        let link = FdLink::from(program.take_link(id).must("take"));
        link.pin(pins.join("link")).must("pin");
    }
}

/// A connection each way comes to these listeners.
fn is_steered_to(world: &World, ears: &Ears) {
    let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let _ = ears.out4.accept();
    let _app = world.app(|| dial("[2001:db8::10]:80")).must("connect");
    let _ = ears.out6.accept();
    let _client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let _ = ears.in4.accept();
}

#[test]
fn a_pod_of_an_earlier_version_is_steered_all_the_while_it_is_taken_over() {
    let mut world = World::without_agent();
    let root = world.options().dir;
    let earlier = root.join(format!("v{}", ABI_VERSION - 1));
    // Where a connection comes to that nobody steers.
    let _application = world.app(|| Ear::plain("10.0.0.1:8080"));
    let server = world.wire.run(|| Ear::plain("10.0.0.2:8080"));
    let mut old = OldAgent::steer(&world, &earlier);
    let leg = world.app_socket(socket2::Domain::IPV4);
    old.exempt.insert(&leg.as_fd(), 1, 0).must("exempt");
    let goes_its_own_way = || {
        connect(&leg, "10.0.0.2:8080").must("connect");
        drop(server.accept());
        disconnect(&leg);
    };
    is_steered_to(&world, &world.ears);
    goes_its_own_way();
    drop(old);
    is_steered_to(&world, &world.ears);

    world.load();
    let cookie = world.cookie;
    assert_eq!(world.node().left_to_other_versions().must("look"), [cookie]);
    is_steered_to(&world, &world.ears);
    goes_its_own_way();

    let ears = std::mem::replace(&mut world.ears, Ears::new(&world.pod));
    world.attach(&Exclusions::default());
    world
        .node()
        .enrol(cookie, &Exclusions::default())
        .must("enrol");
    is_steered_to(&world, &world.ears);
    assert!(ears.out4.hears_nothing() && ears.in4.hears_nothing());
    goes_its_own_way();

    assert_eq!(
        world.node().left_to_other_versions().must("look"),
        Vec::<u64>::new()
    );
    assert_eq!(world.node().collect_other_versions().must("collect"), 1);
    assert!(!earlier.exists());
    is_steered_to(&world, &world.ears);
    goes_its_own_way();
}

/// The same version means the same pins, and maps of the same kinds and sizes.
#[test]
fn a_changed_map_or_pin_has_a_new_version() {
    let pins = fs::read_to_string(recorded("pins.txt")).must("read");
    if !pins.starts_with(&format!("v{ABI_VERSION}/")) {
        return;
    }
    let world = World::new();
    let root = world.options().dir;
    let cookie = world.cookie.to_string();
    let mut now = Vec::new();
    walk(&root, &root, &mut now);
    now.sort();
    let now: Vec<_> = now
        .iter()
        .map(|pin| pin.replace(&cookie, "COOKIE"))
        .collect();
    assert_eq!(
        now,
        pins.lines().collect::<Vec<_>>(),
        "add a version to ebpf/abi"
    );
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("../programs");
    let (now, then) = (maps(&objects, &world), maps(&recorded("ebpf"), &world));
    assert_eq!(now.len(), NODE_MAPS.len() + POD_MAPS.len());
    assert_eq!(now, then, "add a version to ebpf/abi");
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).must("read") {
        let path = entry.must("read").path();
        match path.is_dir() {
            true => walk(root, &path, found),
            false => found.push(path.strip_prefix(root).must("strip").display().to_string()),
        }
    }
}

/// The kind, sizes and entries of the maps of the objects in a directory.
fn maps(objects: &Path, world: &World) -> BTreeMap<&'static str, String> {
    let dir = world.bpffs.path().join("maps");
    let _node = load(&objects.join("node.bpf.o"), &NODE_MAPS, &dir);
    let _pod = load(&objects.join("pod.bpf.o"), &POD_MAPS, &dir);
    let described = NODE_MAPS.iter().chain(&POD_MAPS).map(|name| {
        let info = MapInfo::from_pin(dir.join(name)).must(name);
        let kind = info.map_type().must(name);
        let sizes = (info.key_size(), info.value_size(), info.max_entries());
        fs::remove_file(dir.join(name)).must("unpin");
        (
            *name,
            format!("{kind:?} {sizes:?} flags {}", info.map_flags()),
        )
    });
    described.collect()
}

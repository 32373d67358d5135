// SPDX-License-Identifier: Apache-2.0
use std::os::unix::fs::{PermissionsExt, symlink};

use prometheus::Registry;
use serde_json::Value;
use tempfile::TempDir;

use super::{super::Settings, *};

const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
const OTHER: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}"#;

struct World {
    dir: TempDir,
    keeper: Keeper,
    status: watch::Receiver<CniStatus>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        for name in ["net", "bin"] {
            fs::create_dir(dir.path().join(name)).unwrap_or_else(|e| panic!("{e}"));
        }
        let plugin = dir.path().join("plugin");
        fs::write(&plugin, "program").unwrap_or_else(|e| panic!("{e}"));
        let install = Install {
            net_dir: dir.path().join("net"),
            bin_dir: dir.path().join("bin"),
            file: "00-culvert.conflist".to_owned(),
            plugin,
            cache_dir: dir.path().join("cache"),
            settings: Settings {
                agent_socket: "/run/culvert/cni.sock".into(),
                opt_in_file: "/var/lib/culvert/agent/opt-in.json".into(),
                never_mesh: vec!["culvert".to_owned()],
            },
        };
        let (sender, status) = watch::channel(CniStatus::default());
        let metrics = Metrics::register(&Registry::new()).unwrap_or_else(|e| panic!("{e}"));
        let keeper = Keeper::new(install, metrics, sender);
        let now = Instant::now();
        Self {
            dir,
            keeper,
            status,
            now,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("net").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    fn look(&mut self) -> CniStatus {
        self.keeper.look(self.now);
        self.status.borrow().clone()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path("00-culvert.conflist")).unwrap_or_default()
    }

    /// The types of the plugins in ours.
    fn types(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.text()).unwrap_or_default();
        let plugins = list["plugins"].as_array().into_iter().flatten();
        plugins
            .filter_map(|plugin| Some(plugin["type"].as_str()?.to_owned()))
            .collect()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("net"))
            .into_iter()
            .flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn repairs(&self, what: &str) -> u64 {
        self.keeper.metrics.repairs_of(what)
    }
}

#[test]
fn the_chain_follows_the_primary() {
    let mut world = World::new();
    let status = world.look();
    assert!(
        !status.chained && status.problem.contains("no network"),
        "{status:?}"
    );
    assert!(world.files().is_empty());
    world.write("10-n.conflist", BRIDGE);
    world.write("20-later.conflist", OTHER);
    let status = world.look();
    assert!(
        status.chained && status.primary.ends_with("10-n.conflist"),
        "{status:?}"
    );
    assert_eq!(world.types(), ["bridge", "culvert-cni"]);
    world.write("10-n.conflist", OTHER);
    assert!(world.look().chained);
    assert_eq!(world.types(), ["ptp", "culvert-cni"]);
    // Renamed.
    world.write("05-n.conflist", BRIDGE);
    world.remove("10-n.conflist");
    assert!(world.look().primary.ends_with("05-n.conflist"));
    assert_eq!(world.types(), ["bridge", "culvert-cni"]);
    let files = world.files();
    let ours = ["00-culvert.conflist", "05-n.conflist", "20-later.conflist"];
    assert_eq!(files, ours, "something temporary stays");
    assert_eq!(world.repairs("conflist"), 0);
}

#[test]
fn what_is_changed_by_hand_is_put_right() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    world.look();
    let right = world.text();
    for (nth, wrong) in (1..).zip(["", "{}", BRIDGE, "gone"]) {
        match wrong {
            "gone" => world.remove("00-culvert.conflist"),
            wrong => world.write("00-culvert.conflist", wrong),
        }
        assert!(world.look().chained);
        assert_eq!(world.text(), right, "{wrong}");
        assert_eq!(world.repairs("conflist"), nth, "{wrong}");
    }
}

#[test]
fn a_primary_that_is_broken_or_gone_leaves_ours() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    world.look();
    let right = world.text();
    world.write("10-n.conflist", "{\"name\":");
    let status = world.look();
    assert!(
        !status.chained && status.problem.contains("10-n.conflist"),
        "{status:?}"
    );
    assert_eq!(world.text(), right);
    // Also when somebody takes ours away meanwhile: the next file is not the network's.
    world.write("20-later.conflist", OTHER);
    world.remove("00-culvert.conflist");
    world.look();
    assert_eq!(world.text(), right);
    assert_eq!(world.repairs("conflist"), 1);
    world.remove("10-n.conflist");
    world.remove("20-later.conflist");
    assert!(world.look().problem.contains("no network"));
    assert_eq!(world.text(), right);
    world.write("10-n.conflist", BRIDGE);
    assert!(world.look().chained);
}

#[test]
fn what_an_earlier_agent_left_is_taken_over() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    world.look();
    let right = world.text();
    world.write(
        "00-culvert.conflist",
        &right.replace("cni.sock", "old.sock"),
    );
    world.keeper.written = None;
    assert!(world.look().chained);
    assert_eq!(world.text(), right);
    assert_eq!(world.repairs("conflist"), 0);
}

#[test]
fn who_rewrites_it_in_a_loop_is_slowed_down_and_told() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    world.look();
    let mut waits = Vec::new();
    for _ in 0..7 {
        world.write("00-culvert.conflist", "{}");
        waits.extend(world.keeper.look(world.now));
    }
    assert_eq!(world.repairs("conflist"), 5);
    assert!(!waits.is_empty(), "it goes on at once");
    let problem = world.status.borrow().problem.clone();
    assert!(problem.contains("cni.exclusive"), "{problem}");
    assert!(!world.status.borrow().chained);
    world.now += waits[0];
    world.look();
    assert_eq!(world.types(), ["bridge", "culvert-cni"]);
    world.now += Duration::from_secs(60);
    assert!(world.look().chained, "the peace is not believed");
}

#[test]
fn a_file_that_sorts_before_ours_is_told() {
    let mut world = World::new();
    world.write("00-a.conflist", BRIDGE);
    let status = world.look();
    assert!(
        !status.chained && status.problem.contains("00-a.conflist sorts before"),
        "{status:?}"
    );
    assert_eq!(world.types(), ["bridge", "culvert-cni"]);
    assert_eq!(world.keeper.look(world.now), None, "it fights");
}

#[test]
fn a_copy_of_ours_is_no_primary() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    world.look();
    // As istio-cni does it: what sorts first, and itself.
    let theirs = |text: &str| {
        let mut list: Value = serde_json::from_str(text).unwrap_or_default();
        let plugins = list["plugins"].as_array_mut();
        let plugins = plugins.unwrap_or_else(|| panic!("{text}"));
        plugins.retain(|plugin| plugin["type"] != "istio-cni");
        plugins.push(serde_json::json!({"type": "istio-cni"}));
        list.to_string()
    };
    for _ in 0..3 {
        world.write("02-istio-conf.conflist", &theirs(&world.text()));
        assert!(world.look().primary.ends_with("10-n.conflist"));
        assert_eq!(world.types(), ["bridge", "istio-cni", "culvert-cni"]);
    }
    world.write("10-n.conflist", OTHER);
    world.look();
    assert_eq!(world.types(), ["ptp", "istio-cni", "culvert-cni"]);
    world.remove("02-istio-conf.conflist");
    world.look();
    assert_eq!(world.types(), ["ptp", "culvert-cni"]);
    assert_eq!(world.repairs("conflist"), 0);
}

#[test]
fn the_program_is_installed_when_it_differs() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    world.look();
    let program = world.keeper.install.program();
    let read = || fs::read_to_string(&program).unwrap_or_default();
    let mode = fs::metadata(&program).map(|found| found.permissions().mode() & 0o777);
    assert_eq!(
        (read().as_str(), mode.unwrap_or_default()),
        ("program", PROGRAM)
    );
    let stamp = || Stamp::of(&program).unwrap_or_else(|e| panic!("{e}"));
    let first = stamp();
    world.look();
    assert_eq!(stamp(), first, "it is installed again for nothing");
    fs::write(&program, "another").unwrap_or_else(|e| panic!("{e}"));
    assert!(world.look().chained);
    assert_eq!((read().as_str(), world.repairs("program")), ("program", 1));
    fs::remove_file(&program).unwrap_or_else(|e| panic!("{e}"));
    assert!(world.look().chained);
    assert_eq!((read().as_str(), world.repairs("program")), ("program", 2));
}

#[test]
fn without_the_program_nothing_is_chained() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    fs::remove_file(&world.keeper.install.plugin).unwrap_or_else(|e| panic!("{e}"));
    let status = world.look();
    assert!(
        !status.chained && status.problem.contains("plugin"),
        "{status:?}"
    );
    assert_eq!(world.files(), ["10-n.conflist"]);
}

#[test]
fn the_permissions_are_the_primarys() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    let primary = world.path("10-n.conflist");
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(primary, private).unwrap_or_else(|e| panic!("{e}"));
    world.look();
    let ours = fs::metadata(world.path("00-culvert.conflist"));
    let mode = ours.map(|found| found.permissions().mode() & 0o777);
    assert_eq!(mode.unwrap_or_default(), 0o600);
}

#[test]
fn what_is_no_file_blocks_nobody() {
    let mut world = World::new();
    symlink("/dev/zero", world.path("05-endless.conf")).unwrap_or_else(|e| panic!("{e}"));
    world.write("10-n.conflist", BRIDGE);
    let status = world.look();
    assert!(status.problem.contains("05-endless.conf"), "{status:?}");
    world.remove("05-endless.conf");
    fs::create_dir(world.path("05-dir.conflist")).unwrap_or_else(|e| panic!("{e}"));
    world.write("06-empty.conflist", r#"{"name":"n","plugins":[]}"#);
    assert!(world.look().primary.ends_with("10-n.conflist"));
}

#[test]
fn a_keeper_that_panicked_chains_nothing_until_the_next_looks() {
    let mut world = World::new();
    world.write("10-n.conflist", BRIDGE);
    assert!(world.look().chained);
    world.keeper.fallen();
    let status = world.status.borrow().clone();
    assert!(
        !status.chained && status.problem.contains("panicked"),
        "{status:?}"
    );
    assert_eq!(world.keeper.metrics.chained.get(), 0);
    world.keeper = world.keeper.anew();
    assert!(world.look().chained);
    assert_eq!(world.keeper.metrics.chained.get(), 1);
}

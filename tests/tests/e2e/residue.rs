// SPDX-License-Identifier: Apache-2.0
//! What Culvert has put on a node. The same look shows that it is there, and that it is gone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use culvert_tests::cluster::{
    Cluster,
    links::{self, Link},
};

/// What a node with meshed pods has of each.
pub const KINDS: [&str; 8] = [
    "conflist", "plugin", "state", "pin", "rule", "listener", "process", "link",
];

/// A line for each find: its kind, and what it is. What can't be looked at is a failure, not nothing. The directories that
/// the kubelet made for the agent to mount stay, empty. `pgrep` finds nothing by a pattern of more than 15 characters.
const FIND: &str = r#"
failed() { echo "can't look at $1" >&2; exit 3; }
set -- /run/netns/*
[ -e "$1" ] || failed /run/netns
for file in /etc/cni/net.d/*culvert*; do [ ! -e "$file" ] || echo "conflist $file"; done
for file in /opt/cni/bin/*culvert*; do [ ! -e "$file" ] || echo "plugin $file"; done
for dir in /run/culvert /var/lib/culvert; do
  [ ! -e "$dir" ] || find "$dir" -mindepth 1 -printf 'state %p\n' || failed "$dir"
done
find /sys/fs/bpf -mindepth 1 ! -name '*.debug' -printf 'pin %p\n' || failed /sys/fs/bpf
own='lookup (local|main|default)'
rules=$(ip rule && ip -6 rule) || failed "the node's rules"
echo "$rules" | grep -Ev "$own" | sed 's/^/rule of the node /'
for ns; do
  rules=$(nsenter --net="$ns" sh -c 'ip rule && ip -6 rule') || failed "the rules of $ns"
  echo "$rules" | grep -Ev "$own" | sed "s#^#rule $ns #"
  listeners=$(nsenter --net="$ns" ss -Hltn 'src 127.0.0.1 or src [::1]') || failed "the listeners of $ns"
  [ -z "$listeners" ] || echo "$listeners" | sed "s#^#listener $ns #"
done
pgrep -l '^culvert-[acp]' | sed 's/^/process /'
pgrep -x kubelet > /dev/null || failed "processes"
"#;

/// All of it, by kind.
pub fn residue(cluster: &Cluster, node: u8) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let said = cluster.node(node, &["sh", "-c", FIND])?.ok()?;
    ensure!(said.stderr.is_empty(), "n{node}: {}", said.stderr);
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for line in said.stdout.lines() {
        let (kind, what) = line.split_once(' ').unwrap_or((line, ""));
        found
            .entry(kind.to_owned())
            .or_default()
            .push(what.to_owned());
    }
    let links = links_of(cluster, node)?;
    if !links.is_empty() {
        let links = links.iter().map(|link| format!("{link:?}")).collect();
        found.insert("link".to_owned(), links);
    }
    Ok(found)
}

/// The links of a node, of all that this kernel has.
fn links_of(cluster: &Cluster, node: u8) -> anyhow::Result<Vec<Link>> {
    let inodes = |what: &str| -> anyhow::Result<BTreeSet<u64>> {
        let said = cluster.node(node, &["sh", "-c", what])?.ok()?.stdout;
        let inodes: BTreeSet<_> = said.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(!inodes.is_empty(), "n{node}: nothing by {what}");
        Ok(inodes)
    };
    let lab = cluster.cgroup(node);
    let cgroups = inodes(&format!("find {lab} -type d -printf '%i\\n'"))?;
    let spaces = inodes("stat -Lc %i /proc/1/ns/net /run/netns/*")?;
    let mut all = links::all()?;
    all.retain(|link| match link {
        Link::Cgroup(id) => cgroups.contains(id),
        Link::Netns(inode) => spaces.contains(inode),
        Link::Other(_) => false,
    });
    Ok(all)
}

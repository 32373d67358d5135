// SPDX-License-Identifier: Apache-2.0
//! How long loading, attaching and enrolling take. `make bench`

#[path = "../tests/kernel/support.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod support;

use std::time::{Duration, Instant};

use culvert_ebpf_loader::{Exclusions, PodOptions};

use support::{Ears, Must, Net, World, addr};

const PODS: u32 = 250;

fn main() {
    let mut world = World::new();
    let started = Instant::now();
    world.load();
    println!("load: {:?}", started.elapsed());
    let own = [addr("10.0.0.1:0").ip(), addr("[fd00::1]:0").ip()];
    let exclusions = Exclusions::default();
    let pods: Vec<(Net, Ears)> = (0..PODS)
        .map(|_| {
            let net = Net::new();
            let ears = Ears::new(&net);
            (net, ears)
        })
        .collect();
    let cookies: Vec<u64> = pods.iter().map(|(net, _)| net.cookie()).collect();
    let node = world.node();
    for round in ["attach", "attach again"] {
        let mut worst = Duration::ZERO;
        let started = Instant::now();
        for ((net, ears), cookie) in pods.iter().zip(&cookies) {
            let one = Instant::now();
            let options = PodOptions {
                cookie: *cookie,
                netns: net.fd(),
                listeners: ears.fds(),
                own: &own,
                exclusions: &exclusions,
            };
            node.attach_pod(&options).must("attach");
            worst = worst.max(one.elapsed());
        }
        println!(
            "{round}: {:?} a pod, the slowest {worst:?}",
            started.elapsed() / PODS
        );
    }
    let started = Instant::now();
    for cookie in &cookies {
        node.enrol(*cookie, &exclusions).must("enrol");
    }
    println!("enrol: {:?} a pod", started.elapsed() / PODS);
    let started = Instant::now();
    for cookie in &cookies {
        node.withdraw(*cookie).must("withdraw");
        node.detach_pod(*cookie).must("detach");
    }
    println!("withdraw and detach: {:?} a pod", started.elapsed() / PODS);
}

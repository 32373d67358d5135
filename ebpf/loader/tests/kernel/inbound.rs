// SPDX-License-Identifier: Apache-2.0
//! What comes to the application.

use std::{
    io::ErrorKind,
    net::{SocketAddr, SocketAddrV6, TcpStream},
    time::Instant,
};

use culvert_ebpf_loader::{Counters, Exclusions, PodOptions, Subnet};
use socket2::Socket;

use super::support::{
    Ear, IN, Must, Net, PATIENCE, World, addr, connect, dial, domain, tcp, transparent_v6,
};

#[test]
fn a_connection_from_the_wire_lands_on_the_inbound_listener() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let client = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let proxy = world.ears.in4.accept();
    assert_eq!(
        proxy.local_addr().must("getsockname"),
        addr("10.0.0.1:8080")
    );
    assert_eq!(
        proxy.peer_addr().must("getpeername"),
        client.local_addr().must("local")
    );
    assert!(app.hears_nothing());
    let expected = Counters {
        steered_in: 1,
        ..Counters::default()
    };
    assert_eq!(world.counters(), expected);
}

#[test]
fn ipv6_too() {
    let world = World::new();
    let app = world.app(|| Ear::plain("[::]:8080"));
    let _v6 = world.wire.run(|| dial("[fd00::1]:8080")).must("connect");
    let proxy = world.ears.in6.accept();
    assert_eq!(
        proxy.local_addr().must("getsockname"),
        addr("[fd00::1]:8080")
    );
    let _v4 = world.wire.run(|| dial("10.0.0.1:8080")).must("connect");
    let proxy = world.ears.in4.accept();
    assert_eq!(
        proxy.local_addr().must("getsockname"),
        addr("10.0.0.1:8080")
    );
    assert!(app.hears_nothing());
}

/// A neighbour on the link is not let around the policy, and the pod still reaches itself there.
#[test]
fn a_link_local_address_of_the_pod_is_no_way_in() {
    let mut world = World::new();
    world.pod.ip("addr add fe80::aa/64 dev eth0 nodad");
    world.wire.ip("addr add fe80::bb/64 dev eth0 nodad");
    let app = world.app(|| Ear::plain("[::]:8080"));
    let to = |net: &Net| {
        let scope = net
            .run(|| nix::net::if_::if_nametoindex("eth0"))
            .must("eth0");
        SocketAddrV6::new("fe80::aa".parse().must("address"), 8080, 0, scope)
    };
    let scoped = to(&world.wire);
    let refused = world.wire.run(|| TcpStream::connect(scoped));
    assert_eq!(
        refused.err().map(|e| e.kind()),
        Some(ErrorKind::ConnectionRefused)
    );
    assert!(app.hears_nothing());
    assert_eq!(world.counters().dropped, 1);
    let scoped = to(&world.pod);
    let _itself = world.app(|| TcpStream::connect(scoped)).must("connect");
    app.accept();
}

/// As the proxy does with a socket of the agent's.
fn dial_as(from: SocketAddr, to: &str) -> TcpStream {
    let socket = tcp(domain(&from));
    if from.is_ipv4() {
        socket.set_ip_transparent_v4(true).must("IP_TRANSPARENT");
    } else {
        transparent_v6(&socket);
    }
    socket.set_mark(IN).must("SO_MARK");
    socket.bind(&from.into()).must("bind");
    connect(&socket, to).must("connect");
    socket.into()
}

#[test]
fn the_proxys_dial_reaches_the_application_from_the_clients_address() {
    let world = World::new();
    let cases = [
        ("10.0.0.1:8080", "10.0.0.2:61000"),
        ("[fd00::1]:8080", "[fd00::2]:61000"),
    ];
    for (at, from) in cases {
        let app = world.app(|| Ear::plain(at));
        let _client = world.wire.run(|| dial(at)).must("connect");
        let wire = if from.starts_with('[') {
            &world.ears.in6
        } else {
            &world.ears.in4
        }
        .accept();
        assert_eq!(wire.peer_addr().must("peer").ip(), addr(from).ip());
        let _proxy = world.pod.run(|| dial_as(addr(from), at));
        let accepted = app.accept();
        assert_eq!(accepted.peer_addr().must("peer"), addr(from));
        assert_eq!(accepted.local_addr().must("local"), addr(at));
    }
}

#[test]
fn what_a_marked_listener_accepted_can_be_recycled_as_the_proxys_dial() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    // Made within the pods' cgroup, where the agent and the proxy are as well.
    let source = world.app(|| Ear::transparent(socket2::Domain::IPV4, IN));
    world
        .node()
        .exempt(std::os::fd::AsFd::as_fd(&source.0))
        .must("exempt");
    let at = source.0.local_addr().must("local").to_string();
    let client = world.app(|| dial(&at)).must("connect");
    let accepted = Socket::from(source.accept());
    drop(client);
    // An explicit port comes last: the socket would keep it for good.
    for from in ["10.0.0.2:0", "10.0.0.3:0", "10.0.0.4:61000"].map(addr) {
        super::support::disconnect(&accepted);
        accepted.bind(&from.into()).must("bind");
        connect(&accepted, "10.0.0.1:8080").must("connect");
        assert_eq!(app.accept().peer_addr().must("peer").ip(), from.ip());
    }
    assert_eq!(world.counters().exempt, 3);
}

#[test]
fn a_pod_that_dials_itself_is_left_alone() {
    let world = World::new();
    for at in ["10.0.0.1:8080", "[fd00::1]:8080"] {
        let app = world.app(|| Ear::plain(at));
        let _client = world.app(|| dial(at)).must("connect");
        assert_eq!(app.accept().peer_addr().must("peer").ip(), addr(at).ip());
    }
}

#[test]
fn without_a_listener_it_is_refused_and_counted_never_plaintext() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let own = [addr("10.0.0.1:0").ip()];
    let exclusions = Exclusions::default();
    let mut listeners = world.ears.fds();
    listeners[1] = None;
    let options = PodOptions {
        cookie: world.cookie,
        netns: world.pod.fd(),
        listeners,
        own: &own,
        exclusions: &exclusions,
    };
    let node = world.node.as_mut().unwrap_or_else(|| panic!("no agent"));
    node.attach_pod(&options).must("attach");
    let error = world
        .wire
        .run(|| dial("10.0.0.1:8080"))
        .err()
        .map(|e| e.kind());
    assert_eq!(error, Some(ErrorKind::ConnectionRefused));
    assert_eq!(world.counters().dropped, 1);
    assert!(app.hears_nothing());
}

#[test]
fn when_the_listener_is_closed_it_is_refused_too() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    world.ears = super::support::Ears::new(&world.pod);
    // The slot is emptied when the listener's last descriptor is closed: not yet while a child
    // that another test just started has its copy.
    let deadline = Instant::now() + PATIENCE;
    let (error, before) = loop {
        // One whose handshake was cut off by the emptying may count, too.
        let before = world.counters().dropped;
        match world.wire.run(|| dial("10.0.0.1:8080")).map(drop) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => break (error, before),
            _ => assert!(Instant::now() < deadline, "the listener stays"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(world.counters().dropped, before + 1);
    assert!(app.hears_nothing());
}

#[test]
fn what_is_excluded_reaches_the_application() {
    let subnet = |ip: &str, prefix_len| Subnet {
        addr: addr(ip).ip(),
        prefix_len,
    };
    let cases = [
        (vec![8000..=8080], vec![], [true, true]),
        (vec![8081..=65535], vec![], [false, false]),
        (vec![], vec![subnet("10.0.0.0:0", 30)], [true, false]),
        (vec![], vec![subnet("[fd00::]:0", 64)], [false, true]),
    ];
    let mut world = World::new();
    let apps = ["10.0.0.1:8080", "[fd00::1]:8080"].map(|at| world.app(|| Ear::plain(at)));
    for (inbound_ports, subnets, passes) in cases {
        world.attach(&Exclusions {
            outbound_ports: vec![1..=65535],
            inbound_ports,
            subnets,
        });
        let proxies = [&world.ears.in4, &world.ears.in6];
        for ((app, proxy), passes) in apps.iter().zip(proxies).zip(passes) {
            let at = app.0.local_addr().must("local").to_string();
            let _client = world.wire.run(|| dial(&at)).must("connect");
            let _ = if passes { app } else { proxy }.accept();
        }
    }
    assert_eq!(world.counters().excluded_in, 4);
}

#[test]
fn the_kubelets_probes_reach_the_application_and_nobody_elses_do() {
    let mut world = World::new();
    let from = addr("10.0.0.2:40000");
    let dial_from = |to: &str| {
        let socket = tcp(domain(&from));
        socket.set_reuse_address(true).must("SO_REUSEADDR");
        socket.bind(&from.into()).must("bind");
        connect(&socket, to).must("connect");
        // RST instead of TIME_WAIT, which would keep the tuple.
        socket
            .set_linger(Some(std::time::Duration::ZERO))
            .must("SO_LINGER");
        socket
    };
    let app = world.app(|| Ear::plain("10.0.0.1:8080"));
    let probe = world.kubelet(|| dial_from("10.0.0.1:8080"));
    assert_eq!(app.accept().peer_addr().must("peer"), from);
    assert_eq!(world.counters().passed_probe, 1);
    drop(probe);
    // The same tuple, opened by someone else: the note went with the probe.
    let _other = world.wire.run(|| dial_from("10.0.0.1:8080"));
    let _proxy = world.ears.in4.accept();
    assert!(app.hears_nothing());
}

#[test]
fn probes_from_an_ipv6_socket() {
    let mut world = World::new();
    let app = world.app(|| Ear::plain("[::]:8080"));
    let _v6 = world.kubelet(|| dial("[fd00::1]:8080")).must("connect");
    let _ = app.accept();
    let _mapped = world
        .kubelet(|| dial("[::ffff:10.0.0.1]:8080"))
        .must("connect");
    let _ = app.accept();
    assert_eq!(world.counters().passed_probe, 2);
}

#[test]
fn own_addresses_change() {
    let mut world = World::new();
    let cookie = world.cookie;
    world.pod.ip("addr add 10.0.0.7/24 dev eth0");
    let app = world.app(|| Ear::plain("10.0.0.7:8080"));
    let own = ["10.0.0.1:0", "10.0.0.7:0"].map(|a| addr(a).ip());
    world.node().set_own(cookie, &own).must("set_own");
    let _proxy = world
        .pod
        .run(|| dial_as(addr("10.0.0.2:61000"), "10.0.0.7:8080"));
    let _ = app.accept();
    world.node().set_own(cookie, &own[..1]).must("set_own");
    let _proxy = world
        .pod
        .run(|| dial_as(addr("10.0.0.2:61001"), "10.0.0.7:8080"));
    assert!(
        app.hears_nothing(),
        "on lo, to an address that is not own: the outbound listener"
    );
    let _ = world.ears.out4.accept();
}

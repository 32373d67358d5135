// SPDX-License-Identifier: Apache-2.0
//! What the application opens.

use std::{io::ErrorKind, net::UdpSocket};

use culvert_ebpf_loader::{Counters, Exclusions, Subnet};
use socket2::{Domain, Socket};

use super::support::{Ear, Must, OUT, World, addr, connect, dial, disconnect};

#[test]
fn a_connection_lands_on_the_outbound_listener_with_its_destination() {
    let mut world = World::new();
    let app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let proxy = world.ears.out4.accept();
    assert_eq!(
        proxy.local_addr().must("getsockname"),
        addr("192.0.2.10:80")
    );
    assert_eq!(
        proxy.peer_addr().must("getpeername"),
        app.local_addr().must("local")
    );
    assert_eq!(app.local_addr().must("local").ip(), addr("10.0.0.1:0").ip());
    assert_eq!(app.peer_addr().must("peer"), addr("192.0.2.10:80"));
    let expected = Counters {
        steered_out: 1,
        delivered_out: 1,
        ..Counters::default()
    };
    assert_eq!(world.counters(), expected);
}

#[test]
fn ipv6_too() {
    let world = World::new();
    let app = world.app(|| dial("[2001:db8::10]:80")).must("connect");
    let proxy = world.ears.out6.accept();
    assert_eq!(
        proxy.local_addr().must("getsockname"),
        addr("[2001:db8::10]:80")
    );
    assert_eq!(
        app.local_addr().must("local").ip(),
        addr("[fd00::1]:0").ip()
    );
}

#[test]
fn an_ipv6_socket_to_an_ipv4_address_is_ipv4() {
    let world = World::new();
    let _app = world.app(|| dial("[::ffff:192.0.2.10]:80")).must("connect");
    let proxy = world.ears.out4.accept();
    assert_eq!(
        proxy.local_addr().must("getsockname"),
        addr("192.0.2.10:80")
    );
}

#[test]
fn multipath_tcp_is_tcp() {
    let world = World::new();
    let app = world.app(|| {
        let protocol = socket2::Protocol::MPTCP;
        let socket = Socket::new(Domain::IPV4, socket2::Type::STREAM, Some(protocol))?;
        connect(&socket, "192.0.2.10:80").map(|()| socket)
    });
    match app {
        Err(error) if error.raw_os_error() == Some(nix::libc::EPROTONOSUPPORT) => {
            eprintln!("this kernel has no MPTCP");
        }
        app => {
            let _app = app.must("connect");
            let proxy = world.ears.out4.accept();
            assert_eq!(
                proxy.local_addr().must("getsockname"),
                addr("192.0.2.10:80")
            );
        }
    }
}

#[test]
fn other_bits_of_the_mark_stay() {
    let world = World::new();
    let socket = world.app_socket(Domain::IPV4);
    socket.set_mark(0x1100_0042).must("SO_MARK");
    connect(&socket, "192.0.2.10:80").must("connect");
    assert_eq!(socket.mark().must("mark"), 0x1000_0042 | OUT);
}

#[test]
fn an_exempt_socket_goes_its_own_way_and_again_when_recycled() {
    let mut world = World::new();
    let server = world.wire.run(|| Ear::plain("10.0.0.2:8080"));
    let socket = world.app_socket(Domain::IPV4);
    world
        .node()
        .exempt(std::os::fd::AsFd::as_fd(&socket))
        .must("exempt");
    for _ in 0..3 {
        connect(&socket, "10.0.0.2:8080").must("connect");
        drop(server.accept());
        assert_eq!(socket.mark().must("mark"), 0);
        disconnect(&socket);
    }
    assert_eq!(world.counters().exempt, 3);
    assert_eq!(world.counters().steered_out, 0);
    let _app = world.app(|| dial("10.0.0.2:8080")).must("connect");
    let _proxy = world.ears.out4.accept();
    assert!(server.hears_nothing());
}

#[test]
fn what_an_exempt_listener_accepts_is_exempt() {
    let mut world = World::new();
    let server = world.wire.run(|| Ear::plain("10.0.0.2:8080"));
    let listener = world.app(|| Ear::plain("127.0.0.1:0"));
    world
        .node()
        .exempt(std::os::fd::AsFd::as_fd(&listener.0))
        .must("exempt");
    let at = listener.0.local_addr().must("local").to_string();
    let _app = world.app(|| dial(&at)).must("connect");
    let accepted = Socket::from(listener.accept());
    disconnect(&accepted);
    // It keeps the listener's address otherwise.
    accepted.bind(&addr("0.0.0.0:0").into()).must("bind");
    connect(&accepted, "10.0.0.2:8080").must("connect");
    let _ = server.accept();
    assert_eq!(world.counters().exempt, 1);
}

#[test]
fn a_socket_bound_to_a_device_is_refused_and_counted() {
    let mut world = World::new();
    let socket = world.app_socket(Domain::IPV4);
    socket.bind_device(Some(b"eth0")).must("SO_BINDTODEVICE");
    let error = connect(&socket, "10.0.0.2:8080").err().map(|e| e.kind());
    assert_eq!(error, Some(ErrorKind::PermissionDenied));
    assert_eq!(world.counters().refused_bound_device, 1);
}

#[test]
fn a_pod_that_is_not_up_is_refused_and_counted() {
    let mut world = World::new();
    let cookie = world.cookie;
    world.node().set_up(cookie, false).must("down");
    let error = world.app(|| dial("192.0.2.10:80")).err().map(|e| e.kind());
    assert_eq!(error, Some(ErrorKind::PermissionDenied));
    assert_eq!(world.counters().refused_down, 1);
    // A new agent finds it down.
    world.load();
    world
        .node()
        .enrol(cookie, &Exclusions::default())
        .must("enrol");
    assert!(world.app(|| dial("192.0.2.10:80")).is_err());
    world.node().set_up(cookie, true).must("up");
    let _app = world.app(|| dial("192.0.2.10:80")).must("connect");
    let _proxy = world.ears.out4.accept();
}

#[test]
fn what_is_excluded_goes_its_own_way() {
    let mut world = World::new();
    let ears = world
        .wire
        .run(|| ["10.0.0.2:8080", "10.0.0.2:9000", "[fd00::2]:8080"].map(Ear::plain));
    let subnet = |ip: &str, prefix_len| Subnet {
        addr: addr(ip).ip(),
        prefix_len,
    };
    let (dial_8080, dial_9000, dial_v6) = ("10.0.0.2:8080", "10.0.0.2:9000", "[fd00::2]:8080");
    let cases = [
        (vec![8000..=8100], vec![], [true, false, true]),
        (vec![], vec![subnet("10.0.0.0:0", 24)], [true, true, false]),
        (vec![], vec![subnet("0.0.0.0:0", 0)], [true, true, false]),
        (vec![], vec![subnet("[::]:0", 0)], [false, false, true]),
        (
            vec![9000..=9000],
            vec![subnet("[fd00::2]:0", 128)],
            [false, true, true],
        ),
        (vec![], vec![], [false, false, false]),
    ];
    for (outbound_ports, subnets, passes) in cases {
        let exclusions = Exclusions {
            outbound_ports,
            inbound_ports: vec![1..=65535],
            subnets,
        };
        let cookie = world.cookie;
        world.node().enrol(cookie, &exclusions).must("enrol");
        for ((to, ear), passes) in [dial_8080, dial_9000, dial_v6]
            .iter()
            .zip(&ears)
            .zip(passes)
        {
            let _app = world.app(|| dial(to)).must(to);
            let proxy = if to.starts_with('[') {
                &world.ears.out6
            } else {
                &world.ears.out4
            };
            let _ = if passes { ear } else { proxy }.accept();
        }
    }
    assert_eq!(world.counters().excluded_out, 9);
}

#[test]
fn an_exclusion_lets_a_bound_socket_go() {
    let mut world = World::new();
    let server = world.wire.run(|| Ear::plain("10.0.0.2:8080"));
    let exclusions = Exclusions {
        outbound_ports: vec![8080..=8080],
        ..Exclusions::default()
    };
    let cookie = world.cookie;
    world.node().enrol(cookie, &exclusions).must("enrol");
    let socket = world.app_socket(Domain::IPV4);
    socket.bind_device(Some(b"eth0")).must("SO_BINDTODEVICE");
    connect(&socket, "10.0.0.2:8080").must("connect");
    let _ = server.accept();
}

#[test]
fn loopback_and_udp_are_left_alone() {
    let mut world = World::new();
    let at = world.app(|| {
        let server = Ear::plain("127.0.0.1:0");
        let at = server.0.local_addr().must("local").to_string();
        let _app = dial(&at).must("connect");
        let _ = server.accept();
        at
    });
    let mark = world.app(|| {
        let udp = UdpSocket::bind("0.0.0.0:0").must("bind");
        udp.connect(addr("10.0.0.2:53")).must("connect");
        socket2::SockRef::from(&udp).mark().must("mark")
    });
    assert_eq!(mark, 0, "{at}");
    assert_eq!(world.counters(), Counters::default());
}

#[test]
fn a_socket_that_connects_elsewhere_loses_its_mark() {
    let world = World::new();
    let server = world.app(|| Ear::plain("127.0.0.1:0"));
    let at = server.0.local_addr().must("local").to_string();
    let socket = world.app_socket(Domain::IPV4);
    connect(&socket, "192.0.2.10:80").must("connect");
    assert_eq!(socket.mark().must("mark"), OUT);
    drop(world.ears.out4.accept());
    disconnect(&socket);
    connect(&socket, &at).must("connect");
    assert_eq!(socket.mark().must("mark"), 0);
}

#[test]
fn a_withdrawn_pod_goes_its_own_way_also_on_sockets_that_were_marked() {
    let mut world = World::new();
    let server = world.wire.run(|| Ear::plain("10.0.0.2:8080"));
    let socket = world.app_socket(Domain::IPV4);
    connect(&socket, "10.0.0.2:8080").must("connect");
    drop(world.ears.out4.accept());
    disconnect(&socket);
    let cookie = world.cookie;
    world.node().withdraw(cookie).must("withdraw");
    connect(&socket, "10.0.0.2:8080").must("connect");
    let _ = server.accept();
    let _app = world.app(|| dial("10.0.0.2:8080")).must("connect");
    let _ = server.accept();
    assert_eq!(
        world.counters().steered_out,
        1,
        "the counters stay until it is detached too"
    );
    world.node().detach_pod(cookie).must("detach");
    assert_eq!(world.counters(), Counters::default());
    world.node().withdraw(cookie).must("withdraw again");
}

#[test]
fn other_namespaces_are_left_alone() {
    let world = World::new();
    let (mark, error) = world.pods_cgroup.run(&world.wire, || {
        let socket = super::support::tcp(Domain::IPV4);
        socket.set_mark(OUT).must("SO_MARK");
        let error = connect(&socket, "10.0.0.1:1").err();
        (socket.mark().must("mark"), error)
    });
    assert_eq!(mark, OUT, "an unmeshed pod's marks are its own");
    assert!(error.is_none(), "the pod's inbound listener takes any port");
}

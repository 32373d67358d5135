// SPDX-License-Identifier: Apache-2.0

use rtnetlink::packet_route::AddressFamily;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

fn own(addresses: &[(&str, u8, u32)]) -> Own {
    let usable = addresses.iter().map(|(text, length, index)| Usable {
        ip: ip(text),
        length: *length,
        index: *index,
        deprecated: false,
        secondary: false,
    });
    let usable: Vec<_> = usable.collect();
    let all = usable.iter().map(|one| one.ip).collect();
    Own { all, usable }
}

/// `to via gateway dev index metric metric` of the main table.
fn route(to: &str, length: u8, attributes: &[RouteAttribute]) -> RouteMessage {
    let to = ip(to);
    let mut message = RouteMessage::default();
    message.header.address_family = match to {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.table = 254;
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = length;
    message.attributes = attributes.to_vec();
    if length > 0 {
        message
            .attributes
            .push(RouteAttribute::Destination(to.into()));
    }
    message
}

const fn via(index: u32) -> RouteAttribute {
    RouteAttribute::Oif(index)
}

fn gateway(text: &str) -> RouteAttribute {
    RouteAttribute::Gateway(ip(text).into())
}

fn sources(of: Family, own: &Own, routes: &[RouteMessage], elsewhere: bool) -> Vec<String> {
    let text = |route: Route| {
        let Network { ip, length } = route.network;
        match route.target {
            Target::Unreachable => format!("{ip}/{length} unreachable"),
            Target::Lo { source: None } => format!("{ip}/{length}"),
            Target::Lo { source: Some(from) } => format!("{ip}/{length} {from}"),
            Target::Bound { index } => format!("{ip}/{length} bound to {index}"),
        }
    };
    let routes = outbound(of, own, routes, elsewhere);
    routes.into_iter().map(text).collect()
}

#[test]
fn the_least_metric_and_the_gateways_own_network_decide() {
    let own = own(&[
        ("10.1.0.2", 24, 2),
        ("10.2.0.2", 24, 2),
        ("10.3.0.2", 24, 3),
    ]);
    let routes = [
        route("0.0.0.0", 0, &[via(3), RouteAttribute::Priority(9)]),
        route("0.0.0.0", 0, &[via(2), gateway("10.2.0.1")]),
        route("192.0.2.0", 24, &[via(9)]),
        route("169.254.0.0", 16, &[via(2)]),
        route("224.0.0.0", 4, &[via(2)]),
    ];
    let got = sources(Family::V4, &own, &routes, false);
    assert_eq!(got, ["0.0.0.0/0 10.2.0.2", "192.0.2.0/24 10.1.0.2"]);
}

#[test]
fn what_was_learned_of_a_path_is_no_route() {
    let own = own(&[("10.1.0.2", 24, 2)]);
    let mut learned = route("192.0.2.9", 32, &[via(2)]);
    learned.header.flags = RouteFlags::Cloned;
    let got = sources(Family::V4, &own, &[learned], false);
    assert_eq!(got, [""; 0]);
}

#[test]
fn ipv6_is_the_kernels_choice_on_one_interface_and_said_on_several() {
    let one = own(&[("fd01::2", 64, 2), ("2001:db8::2", 64, 2)]);
    let two = own(&[
        ("fd01::2", 64, 2),
        ("fd02::2", 64, 3),
        ("2001:db8::2", 64, 3),
    ]);
    let routes = [
        route("::", 0, &[via(3)]),
        route("fd00::", 8, &[via(3)]),
        route("fe80::", 64, &[via(3)]),
    ];
    assert_eq!(sources(Family::V6, &one, &routes, false).len(), 2);
    let got = sources(Family::V6, &one, &routes[..1], false);
    assert_eq!(got, ["::/0"]);
    let got = sources(Family::V6, &two, &routes, false);
    assert_eq!(got, ["::/0 2001:db8::2", "fd00::/8 fd02::2"]);
}

#[test]
fn many_routes_become_one() {
    let own = own(&[("10.1.0.2", 24, 2)]);
    let many = (0..=MOST).map(|nth| {
        let nth = u32::try_from(nth).unwrap_or_default();
        let to = Ipv4Addr::from(0x0b00_0000 | nth << 8);
        route(&to.to_string(), 24, &[via(2)])
    });
    let many: Vec<_> = many.collect();
    let got = sources(Family::V4, &own, &many, false);
    assert_eq!(got, ["0.0.0.0/0 10.1.0.2"]);
    assert_eq!(sources(Family::V4, &own, &[], true), ["0.0.0.0/0 10.1.0.2"]);
    assert_eq!(sources(Family::V4, &own, &[], false), [""; 0]);
}

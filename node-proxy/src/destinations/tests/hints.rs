// SPDX-License-Identifier: Apache-2.0
//! What destinations speak.

use super::*;

fn speaking(protocol: v1::Protocol, snapshot: bool, set: Vec<v1::Endpoint>) -> v1::Destination {
    let mut destination = service(snapshot, set, &[]);
    if let Some(v1::destination::Kind::Service(service)) = &mut destination.kind {
        service.protocol = protocol.into();
    }
    destination
}

fn pod(protocol: i32) -> v1::Destination {
    let endpoint = v1::Endpoint {
        protocol,
        ..endpoint(1, true)
    };
    let pod = v1::Pod {
        endpoint: Some(endpoint),
    };
    v1::Destination {
        destination: Some(addr(1).into()),
        kind: Some(v1::destination::Kind::Pod(pod)),
    }
}

#[tokio::test]
async fn a_service_whose_protocol_changes_is_the_same() {
    let (destinations, mut asked) = destinations();
    let first = speaking(v1::Protocol::Detect, true, vec![endpoint(2, true)]);
    let held = resolved(&destinations, &mut asked, &first).await;
    assert_eq!(held.hint(80), Hint::Detect);
    for (protocol, hint) in [
        (v1::Protocol::Opaque, Hint::Opaque),
        (v1::Protocol::Http1, Hint::Http1),
        (v1::Protocol::Http2, Hint::Http2),
    ] {
        destinations.apply(&speaking(protocol, false, vec![]));
        assert_eq!(held.hint(80), hint, "who holds it knows");
        let again = destinations.resolve(&key(), addr(1)).await;
        assert!(again.is_ok_and(|again| Arc::ptr_eq(&held, &again)));
        assert_eq!(saved(&destinations), [(addr(2), true)]);
    }
    let Resolved::Service(service) = &*held else {
        panic!("{held:?}");
    };
    assert_eq!(service.port, 80);
}

#[tokio::test]
async fn what_control_does_not_say_is_the_default_list() {
    let (destinations, mut asked) = destinations();
    let earlier = service(true, vec![endpoint(2, true)], &[]);
    let held = resolved(&destinations, &mut asked, &earlier).await;
    assert_eq!(
        (held.hint(80), held.hint(3306)),
        (Hint::Detect, Hint::Opaque)
    );
    for (protocol, hints) in [
        (0, [Hint::Detect, Hint::Opaque]),
        (v1::Protocol::Detect.into(), [Hint::Detect; 2]),
        (v1::Protocol::Opaque.into(), [Hint::Opaque; 2]),
        (99, [Hint::Detect; 2]),
    ] {
        destinations.apply(&pod(protocol));
        let pod = destinations.resolve(&key(), addr(1)).await;
        let pod = pod.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!([80, 3306].map(|port| pod.hint(port)), hints, "{protocol}");
    }
    destinations.apply(&unknown(addr(1)));
    let stranger = destinations.resolve(&key(), addr(1)).await;
    assert!(stranger.is_ok_and(|it| it.hint(3306) == Hint::Opaque && it.hint(80) == Hint::Detect));
}

#[tokio::test]
async fn hints_are_saved_and_an_earlier_file_has_none() {
    let (destinations, mut asked) = destinations();
    let own = v1::Endpoint {
        protocol: v1::Protocol::Opaque.into(),
        ..endpoint(2, true)
    };
    let first = speaking(v1::Protocol::Http2, true, vec![own]);
    resolved(&destinations, &mut asked, &first).await;
    let mut file = serde_json::to_value(destinations.save()).unwrap_or_else(|e| panic!("{e}"));
    let hint = |file: &serde_json::Value| {
        let (next, _asked) = self::destinations();
        let read = serde_json::from_value(file.clone()).unwrap_or_else(|e| panic!("{e}"));
        next.restore(read);
        assert_eq!(saved(&next), [(addr(2), true)]);
        next.find(addr(1)).map(|entry| entry.save())
    };
    let protocols = |saved: Option<Option<SavedKind>>| match saved.flatten() {
        Some(SavedKind::Service {
            protocol,
            endpoints,
            ..
        }) => (protocol, endpoints[0].protocol),
        other => panic!("{other:?}"),
    };
    let both = (Some(Hint::Http2), Some(Hint::Opaque));
    assert_eq!(protocols(hint(&file)), both);
    let service = file[0].as_object_mut();
    service.and_then(|service| service.remove("protocol"));
    let endpoint = file[0]["endpoints"][0].as_object_mut();
    endpoint.and_then(|endpoint| endpoint.remove("protocol"));
    assert_eq!(protocols(hint(&file)), (None, None));
}

fn undeclared() -> v1::Destination {
    let undeclared = v1::Unknown { undeclared: true };
    v1::Destination {
        destination: Some(addr(1).into()),
        kind: Some(v1::destination::Kind::Unknown(undeclared)),
    }
}

#[tokio::test]
async fn a_port_that_a_service_does_not_have_is_refused_until_it_has_it() {
    let (destinations, mut asked) = destinations();
    let first = service(true, vec![endpoint(2, true)], &[]);
    resolved(&destinations, &mut asked, &first).await;
    let refused = Unresolved::Undeclared {
        destination: addr(1),
    };
    for _ in 0..2 {
        destinations.apply(&undeclared());
        let got = destinations.resolve(&key(), addr(1)).await;
        assert_eq!(got.err().as_ref(), Some(&refused));
        assert!(destinations.save().is_empty(), "nobody trusts it later");
        destinations.apply(&first);
        assert!(destinations.resolve(&key(), addr(1)).await.is_ok());
    }
    destinations.apply(&undeclared());
    destinations.apply(&unknown(addr(1)));
    let stranger = destinations.resolve(&key(), addr(1)).await;
    assert!(stranger.is_ok_and(|it| matches!(*it, Resolved::Unknown)));
}

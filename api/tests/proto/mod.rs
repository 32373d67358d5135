// SPDX-License-Identifier: Apache-2.0
//! control.proto against those of earlier releases.

use std::collections::BTreeMap;

use super::{lines, releases, text};

const NOW: &str = include_str!("../../proto/control.proto");

/// Fields, values and methods by `<message> <number>`, `<enum> <number>` and `<service> <method>`.
fn parts(proto: &str) -> BTreeMap<String, String> {
    let (mut found, mut inside) = (BTreeMap::new(), Vec::new());
    for line in proto.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let words: Vec<_> = line.split_whitespace().collect();
        let scope = inside
            .iter()
            .rev()
            .find(|scope: &&String| !scope.is_empty());
        let scope = scope.cloned().unwrap_or_default();
        match words.as_slice() {
            ["oneof", ..] => inside.push(String::new()),
            ["message" | "enum" | "service", name, "{"] => inside.push((*name).to_owned()),
            ["message", _, "{}"] | [] => {}
            ["}"] => drop(inside.pop()),
            ["rpc", signature @ ..] => {
                let signature = signature.join(" ");
                let (method, rest) = signature
                    .split_once('(')
                    .unwrap_or_else(|| panic!("{line}"));
                found.insert(format!("{scope} {method}"), rest.to_owned());
            }
            [what @ .., "=", number] if !inside.is_empty() => {
                found.insert(format!("{scope} {number}"), what.join(" "));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn no_field_of_an_earlier_proto_is_gone_or_another() {
    let now = parts(NOW);
    for release in releases() {
        let earlier = parts(&text(&release.join("control.proto")));
        assert!(earlier.len() > 50, "{earlier:?}");
        for (place, what) in earlier {
            assert_eq!(
                now.get(&place),
                Some(&what),
                "{place} of {}",
                release.display()
            );
        }
    }
}

#[test]
fn a_changed_proto_is_told_from_the_same() {
    let changed = NOW.replace("string pod_uid = 1;", "bytes pod_uid = 1;");
    assert_ne!(parts(&changed), parts(NOW));
    let renumbered = NOW.replace("Ack ack = 7;", "Ack ack = 8;");
    assert_eq!(parts(&renumbered).get("WatchRequest 7;"), None);
    assert!(parts(NOW).contains_key("Discovery Watch"));
}

#[cfg(feature = "grpc")]
mod bytes {
    use culvert_api::grpc::v1;
    use prost::Message;

    use super::*;

    /// The bytes behind the flag and the length of a gRPC message.
    fn body(line: &serde_json::Value) -> Vec<u8> {
        let hex = line["bytes"].as_str().unwrap_or_default();
        let digits = hex.as_bytes().as_chunks::<2>().0.iter();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<_>> = digits.map(byte).collect();
        let bytes = bytes.unwrap_or_else(|| panic!("{hex}"));
        let (head, body) = bytes.split_at(5);
        assert_eq!(head[0], 0, "not compressed");
        assert_eq!(head[1..], (body.len() as u32).to_be_bytes());
        body.to_vec()
    }

    /// Nothing of it is unknown or lost.
    fn understood<T: Message + Default + std::fmt::Debug>(line: &serde_json::Value) -> T {
        let bytes = body(line);
        let read = T::decode(&bytes[..]).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(read.encode_to_vec(), bytes, "{read:?}");
        read
    }

    #[test]
    fn proxy_and_control_understand_earlier_ones() {
        for release in releases() {
            for line in lines(&release, "grpc-watch.jsonl") {
                match line["from"] == "proxy" {
                    true => assert!(understood::<v1::WatchRequest>(&line).kind.is_some()),
                    false => assert!(understood::<v1::WatchResponse>(&line).kind.is_some()),
                }
            }
            for line in lines(&release, "grpc-certify.jsonl") {
                match line["from"] == "proxy" {
                    true => assert!(!understood::<v1::CertifyRequest>(&line).csr.is_empty()),
                    false => assert!(!understood::<v1::CertifyResponse>(&line).chain.is_empty()),
                }
            }
        }
    }

    #[test]
    fn a_kind_and_a_field_of_a_later_release_are_passed_over() {
        // Field 15, a string, beside the sequence number.
        let later = v1::WatchResponse::decode(&[0x08, 5, 0x7a, 1, b'x'][..]);
        let expected = v1::WatchResponse {
            sequence: 5,
            kind: None,
        };
        assert_eq!(later.ok(), Some(expected));
    }
}

// SPDX-License-Identifier: Apache-2.0
//! What the control of an earlier release answered, in its own bytes.

use std::collections::BTreeMap;

use culvert_api::version::still_says;
use prost::Message;
use serde_json::Value;

use super::*;

const WATCH: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/recorded/0.1.0/grpc-watch.jsonl"
));
const STATE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/recorded/0.1.0/state/proxy/state.json"
));

/// The first answers of the last stream, by what they are about.
fn answers() -> BTreeMap<SocketAddr, Said> {
    let lines = WATCH.lines().map(serde_json::from_str);
    let lines: Result<Vec<Value>, _> = lines.collect();
    let mut lines = lines.unwrap_or_else(|e| panic!("{e}"));
    let call = lines.last().map(|line| line["call"].clone());
    lines.retain(|line| Some(&line["call"]) == call.as_ref() && line["from"] == "control");
    let mut answers = BTreeMap::new();
    for line in lines {
        let answer = v1::WatchResponse::decode(&body(&line)[..]).unwrap_or_else(|e| panic!("{e}"));
        if let Some(Said::Destination(said)) = answer.kind {
            let of = said
                .destination
                .as_ref()
                .and_then(|of| SocketAddr::try_from(of).ok());
            let of = of.unwrap_or_else(|| panic!("{said:?}"));
            answers.entry(of).or_insert(Said::Destination(said));
        }
    }
    answers
}

/// Behind the flag and the length of a gRPC message.
fn body(line: &Value) -> Vec<u8> {
    let hex = line["bytes"].as_str().unwrap_or_default();
    let digits = hex.as_bytes().as_chunks::<2>().0.iter();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.skip(5).filter_map(byte).collect()
}

/// The proxy of then kept the same of it.
#[tokio::test]
async fn an_earlier_control_is_understood_as_then() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    let _link = fixture.link_control()?;
    hello(&mut fixture).await;
    let answers = answers();
    assert!(answers.len() > 1, "{answers:?}");
    for (sequence, (of, answer)) in (1..).zip(answers) {
        let destinations = fixture.proxy.destinations.clone();
        let resolved = tokio::spawn(async move { destinations.resolve(&key(), of).await });
        while !matches!(fixture.control.next().await, Asked::Subscribe(_)) {}
        fixture.control.say(sequence, answer);
        assert!(resolved.await?.is_ok(), "{of}");
    }
    let mut kept = serde_json::to_value(fixture.proxy.destinations.save())?;
    let then: Value = serde_json::from_str(STATE)?;
    for earlier in then["destinations"].as_array().into_iter().flatten() {
        let mut now = kept.as_array_mut().into_iter().flatten();
        let found = now.any(|now| still_says(now, earlier));
        assert!(found, "{earlier} is not in {kept}");
    }
    Ok(())
}

/// A control that shares no version with this proxy says so and is tried again.
#[test]
fn a_control_of_other_versions_is_told_from_one_that_is_away() {
    let far = Versions {
        newest: 9,
        oldest: 8,
    };
    let refused = VERSIONS.agree(far);
    let Err(error) = refused else {
        panic!("{refused:?}")
    };
    let text = error.to_string();
    assert!(text.contains("8–9") && text.contains("1–1"), "{text}");
    let status = tonic::Status::failed_precondition(text);
    for (ended, mismatch) in [
        (Ended::Version(error), true),
        (Ended::Status(status), true),
        (Ended::Closed, false),
    ] {
        assert_eq!(ended.is_version_mismatch(), mismatch, "{ended}");
    }
}

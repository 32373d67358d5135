// SPDX-License-Identifier: Apache-2.0
//! HTTP that means harm: whatever it is, it is refused as the RFCs say and counted, no application
//! sees a request that was hidden in another, and nobody else's requests notice.

mod app;
mod app2;
mod bodies;
mod frames;
mod ground;
mod http2;
mod servers;
mod slow;
mod smuggling;

use culvert_tests::{require, suite::Suite};

use crate::ground::{Ground, among_bystanders};

#[test]
fn hostile_http() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let (sandbox, ground) = Ground::up()?;
    let mut suite = Suite::new(sandbox);
    let mut step = |name: &str, step: fn(&Ground<'_>) -> anyhow::Result<()>| {
        suite.step(name, |sandbox| {
            let ground = ground.over(sandbox);
            among_bystanders(&ground, || step(&ground))
        });
    };
    step(
        "heads that are malformed or ambiguous are refused",
        smuggling::heads,
    );
    step(
        "lengths that two readers read differently",
        smuggling::lengths,
    );
    step(
        "what an application gets of an odd head",
        smuggling::forwarded,
    );
    step(
        "chunks that are malformed cut the request off",
        bodies::chunks,
    );
    step("trailers neither frame nor identify", bodies::trailers);
    step("a body that breaks off is no whole body", bodies::cut);
    step(
        "heads that are too long or have too many fields",
        smuggling::sizes,
    );
    step(
        "a head that drips is cut off, a rest between requests is not",
        slow::heads,
    );
    step(
        "a body that stands still is cut off, a slow one is not",
        slow::bodies,
    );
    step("clients that do not read cost themselves", slow::readers);
    step(
        "HTTP/2: malformed requests are refused one by one",
        http2::streams,
    );
    step(
        "HTTP/2: broken frames end the connection",
        http2::connections,
    );
    step(
        "HTTP/2: floods end the connection or cost nobody else",
        http2::load::floods,
    );
    step(
        "HTTP/2: streams that are taken back again and again",
        http2::load::resets,
    );
    step(
        "HTTP/2: more streams than allowed are refused",
        http2::load::too_many,
    );
    step(
        "HTTP/2: many small messages are no flood",
        http2::load::small_messages,
    );
    step(
        "HTTP/2: windows that stay shut cost themselves",
        http2::load::shut_windows,
    );
    step(
        "servers whose answers are ambiguous are not believed",
        servers::answers,
    );
    suite.finish()
}

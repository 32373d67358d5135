// SPDX-License-Identifier: Apache-2.0
//! Peers on the network that mean harm. Whatever they do is refused and counted, costs their own
//! connection only, and brings no byte to an application or from one.

mod bytes;
mod certificates;
mod flood;
mod ground;
mod hellos;
mod insiders;
mod servers;

use culvert_tests::{require, suite::Suite};

#[test]
fn hostile() -> anyhow::Result<()> {
    if !require::root()? {
        return Ok(());
    }
    let mut suite = Suite::new(ground::sandbox()?);
    // First: what was freed is not given back, and would hide what they cost.
    suite.step("thousands of idle connections", flood::idle);
    suite.step(
        "clients with forged certificates are refused",
        certificates::forged,
    );
    suite.step(
        "unusual but right certificates are let in",
        certificates::unusual,
    );
    suite.step(
        "chains that are too long are refused",
        certificates::long_chains,
    );
    suite.step(
        "servers with forged certificates get no byte",
        servers::forged,
    );
    suite.step(
        "a server in plaintext or in another TLS gets no byte",
        servers::others,
    );
    suite.step(
        "ClientHellos by hand: who is let in, refused, relayed",
        hellos::table,
    );
    suite.step("a ClientHello in pieces is put together", hellos::pieces);
    suite.step(
        "a ClientHello that is too long is given up",
        hellos::oversized,
    );
    suite.step("a ClientHello that drips is cut off", hellos::dripping);
    suite.step(
        "other versions and openssl's ways are refused",
        hellos::openssl,
    );
    suite.step("early data is never processed", hellos::early_data);
    suite.step(
        "a ticket of another identity does not resume",
        insiders::tickets,
    );
    suite.step(
        "bytes that break TLS end the connection",
        bytes::broken_records,
    );
    suite.step(
        "key updates, empty records, alerts without end",
        insiders::floods,
    );
    suite.step(
        "a stream that is cut off is not a clean end",
        insiders::truncated,
    );
    suite.step(
        "a server that was let in and breaks the rules",
        servers::insider,
    );
    suite.step(
        "handshakes that never end leave room for others",
        flood::slowloris,
    );
    suite.step(
        "a SYN flood costs its pod a while and nobody else",
        flood::syn,
    );
    suite.finish()
}

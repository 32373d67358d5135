// SPDX-License-Identifier: Apache-2.0
//! Waiting for what must come, instead of sleeping for what should have.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

const POLL: Duration = Duration::from_millis(20);

/// Asks until the answer is yes. When time is up, says what the last answer lacked.
pub fn wait_for<T, E: Display>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(miss) if begin.elapsed() >= patience => {
                bail!("waited {patience:?} for {what}; the nearest miss: {miss:#}")
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_miss_is_told() {
        let mut asked = 0;
        let got = wait_for("three", Duration::from_secs(5), || {
            asked += 1;
            if asked == 3 {
                Ok(asked)
            } else {
                Err("too few")
            }
        });
        assert!(got.is_ok_and(|got| got == 3));
        let never = wait_for("it", Duration::ZERO, || Err::<(), _>("no")).err();
        let text = never.map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("for it") && text.ends_with("no"), "{text}");
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Until when all must be done: then the kubelet kills the agent.

use std::{fmt::Display, time::Duration};

use tokio::time::{Instant, error::Elapsed, timeout};

/// Until when all must be done.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

// === impl Deadline ===

impl Deadline {
    /// From now on.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// How long that is.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Waits so long at most, and never longer than there is time.
    pub async fn wait<T>(
        self,
        patience: Duration,
        step: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        timeout(patience.min(self.left()), step).await
    }

    /// The same of a step that may fail, with why it did.
    pub async fn within<T, E: Display>(
        self,
        patience: Duration,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        let patience = patience.min(self.left());
        match self.wait(patience, step).await {
            Ok(done) => done.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("it took more than {} seconds", patience.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_steps_take_no_more_than_there_is_time() {
        let deadline = Deadline::after(Duration::from_secs(25));
        let begun = Instant::now();
        for expected in [10, 20, 25, 25] {
            let never = std::future::pending::<io::Result<()>>();
            let done = deadline.within(Duration::from_secs(10), never).await;
            assert!(done.is_err());
            assert_eq!(begun.elapsed().as_secs(), expected);
        }
        // What takes no time is done even then.
        let done = deadline.within(Duration::from_secs(10), async { Ok::<_, io::Error>(1) });
        assert_eq!(done.await, Ok(1));
        let failed = async {
            sleep(Duration::from_secs(1)).await;
            Err::<(), _>(io::Error::other("x"))
        };
        let deadline = Deadline::after(Duration::from_secs(2));
        assert_eq!(
            deadline.within(Duration::MAX, failed).await,
            Err("x".to_owned())
        );
    }
}

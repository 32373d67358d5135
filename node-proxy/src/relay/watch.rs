// SPDX-License-Identifier: Apache-2.0
//! What a connection waits for in vain. The timer exists only while there is something to watch:
//! an idle connection whose every byte is acknowledged is left to TCP's keepalive.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use super::{Broken, pump::Pumps};
use crate::tcp;

/// How often a connection with something to watch is looked at.
const TICK: Duration = Duration::from_secs(10);

/// How often one is that has said its last in one direction: nothing else tells that it was reset
/// since, because there is nothing more to read from it.
const HALF_OPEN_TICK: Duration = Duration::from_secs(1);

/// How long the last words of a broken side may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Watch {
    half_open: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    tick: Duration,
    breaking: bool,
    /// How much had moved when it was last looked at.
    moved: u64,
    /// Since when one end has said its last and nothing moves.
    stuck: Option<Instant>,
}

impl Watch {
    pub(super) fn new(half_open: Duration) -> Self {
        Self {
            half_open,
            timer: None,
            tick: TICK,
            breaking: false,
            moved: 0,
            stuck: None,
        }
    }

    /// Ready when there is nothing to be hoped for any more.
    pub(super) fn poll(&mut self, pumps: &mut Pumps<'_>, cx: &mut Context<'_>) -> Poll<Broken> {
        loop {
            self.arm(pumps);
            let Some(timer) = &mut self.timer else {
                return Poll::Pending;
            };
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            if let Some(broken) = self.look(pumps) {
                return Poll::Ready(broken);
            }
        }
    }

    fn arm(&mut self, pumps: &mut Pumps<'_>) {
        if !self.breaking && pumps.is_half_open() && self.tick != HALF_OPEN_TICK {
            self.tick = HALF_OPEN_TICK;
            self.timer = None;
        }
        if pumps.is_breaking() && !self.breaking {
            self.breaking = true;
            self.timer = Some(Box::pin(sleep(LAST_WORDS)));
        }
        if self.timer.is_none() && (pumps.is_half_open() || *pumps.unconfirmed()) {
            self.note(pumps);
            self.timer = Some(Box::pin(sleep(self.tick.min(self.half_open))));
        }
    }

    fn note(&mut self, pumps: &Pumps<'_>) {
        let moved = pumps.up() + pumps.down();
        if moved != self.moved || !pumps.is_half_open() {
            self.stuck = None;
        }
        self.moved = moved;
        if pumps.is_half_open() {
            self.stuck.get_or_insert_with(Instant::now);
        }
    }

    fn look(&mut self, pumps: &mut Pumps<'_>) -> Option<Broken> {
        if self.breaking {
            return pumps.take_broken();
        }
        let lost = pumps.lost();
        if lost.is_some() {
            return lost;
        }
        self.note(pumps);
        if self
            .stuck
            .is_some_and(|since| since.elapsed() >= self.half_open)
        {
            return Some(Broken::HalfOpen);
        }
        if tcp::is_dead(pumps.wire()).is_ok_and(|dead| dead) {
            return Some(Broken::Dead);
        }
        *pumps.unconfirmed() = tcp::unacknowledged(pumps.wire()).is_ok_and(|bytes| bytes > 0);
        None
    }
}

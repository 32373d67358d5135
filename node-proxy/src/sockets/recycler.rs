// SPDX-License-Identifier: Apache-2.0
//! Spent sockets on their way back to their pools.
//!
//! A socket can be used again when its connection has ended in the kernel too (state CLOSE). After
//! both ends closed that is a matter of microseconds; who closes first and waits for the other's
//! FIN takes longer, and after ten seconds the kernel is left to finish alone.

use std::{collections::VecDeque, os::fd::AsFd, time::Duration};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::Instant,
};

use super::{
    kernel::{self, State},
    pool::Taken,
    stream::Fate,
};

/// How long a socket waits before it is looked at again, the first time, the second …
const STAGES: [Duration; 7] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(8),
];

/// The most sockets that are waited for at once.
const MOST_LINGERING: usize = 8192;

/// Takes spent sockets. Clones share one queue.
#[derive(Clone, Debug)]
pub(crate) struct Recycler {
    queue: UnboundedSender<Taken>,
}

/// The sockets that are waited for, by how often they were looked at.
#[derive(Debug, Default)]
struct Lingering {
    stages: [VecDeque<(Instant, Taken)>; STAGES.len()],
}

enum Verdict {
    Done,
    Linger(Taken),
}

// === impl Recycler ===

impl Recycler {
    /// Starts the queue's task on the current runtime.
    pub(crate) fn spawn() -> Self {
        let (queue, spent) = unbounded_channel();
        tokio::spawn(run(spent));
        Self { queue }
    }

    /// A connection was dropped.
    pub(super) fn spent(&self, taken: Taken, fate: Fate) {
        match fate {
            Fate::Reset => taken.recycle(),
            Fate::Reuse => self.reuse(taken),
            Fate::Close => taken.close(),
            Fate::ResetAndClose => {
                // Where this fails, close(2) ends the connection all the same.
                let _ = kernel::disconnect(taken.fd());
                taken.close();
            }
        }
    }

    fn reuse(&self, taken: Taken) {
        if let Verdict::Linger(taken) = look(taken) {
            taken.pool.metrics.lingering.inc();
            if let Err(refused) = self.queue.send(taken) {
                refused.0.pool.metrics.lingering.dec();
                refused.0.close();
            }
        }
    }
}

async fn run(mut spent: UnboundedReceiver<Taken>) {
    let mut lingering = Lingering::default();
    loop {
        let next = lingering.next();
        let due = async {
            match next {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            taken = spent.recv() => match taken {
                Some(taken) => lingering.push(0, taken),
                None => return,
            },
            () = due => lingering.look_again(Instant::now()),
        }
    }
}

// === impl Lingering ===

impl Lingering {
    fn push(&mut self, stage: usize, taken: Taken) {
        let full = self.stages.iter().map(VecDeque::len).sum::<usize>() >= MOST_LINGERING;
        match (self.stages.get_mut(stage), STAGES.get(stage)) {
            (Some(queue), Some(wait)) if !full => queue.push_back((Instant::now() + *wait, taken)),
            _ => give_up(taken),
        }
    }

    fn next(&self) -> Option<Instant> {
        let firsts = self.stages.iter().filter_map(VecDeque::front);
        firsts.map(|(due, _)| *due).min()
    }

    fn look_again(&mut self, now: Instant) {
        for stage in 0..STAGES.len() {
            while let Some(taken) = self.pop_due(stage, now) {
                let lingering = taken.pool.metrics.lingering.clone();
                match look(taken) {
                    Verdict::Done => lingering.dec(),
                    Verdict::Linger(taken) => self.push(stage + 1, taken),
                }
            }
        }
    }

    fn pop_due(&mut self, stage: usize, now: Instant) -> Option<Taken> {
        let (_, taken) = self
            .stages
            .get_mut(stage)?
            .pop_front_if(|(due, _)| *due <= now)?;
        Some(taken)
    }
}

fn look(taken: Taken) -> Verdict {
    match kernel::state(taken.fd.as_fd()) {
        Ok(State::Closed | State::Connecting) => taken.recycle(),
        Ok(State::Closing) if kernel::has_unread(taken.fd()) => taken.recycle(),
        Ok(State::Closing) => return Verdict::Linger(taken),
        Ok(State::Open) => return close_gently(taken),
        Ok(State::Other) | Err(_) => taken.close(),
    }
    Verdict::Done
}

/// The owner let go of an open connection. As close(2) does: RST if it left bytes unread, else FIN.
fn close_gently(taken: Taken) -> Verdict {
    if kernel::has_unread(taken.fd()) || kernel::shutdown(taken.fd()).is_err() {
        taken.recycle();
        return Verdict::Done;
    }
    Verdict::Linger(taken)
}

/// The kernel finishes without us.
fn give_up(taken: Taken) {
    taken.pool.metrics.lingering.dec();
    taken.close();
}

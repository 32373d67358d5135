// SPDX-License-Identifier: Apache-2.0
//! What the API server answered of tokens, remembered for a while. What was denied is kept apart
//! from what was good, so that a flood of forged tokens drives no node's out.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{
    Hash,
    review::{Denied, Proof},
};

/// How long a token that was good counts without another question, and how long one that was not.
pub(super) const FRESH: Duration = Duration::from_secs(120);
const DENIED: Duration = Duration::from_secs(10);

/// How long nobody is asked again of a token that was good, after nobody answered.
const PUT_OFF: Duration = Duration::from_secs(5);

/// How many tokens are remembered, of each kind: more than a cluster has nodes.
const MOST: usize = 8192;

/// What is known of tokens.
#[derive(Debug, Default)]
pub(super) struct Answers {
    good: Mutex<HashMap<Hash, Good>>,
    denied: Mutex<HashMap<Hash, (Denied, Instant)>>,
    /// Questions that are on their way: the calls with one token share one.
    asking: Mutex<HashMap<Hash, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Clone, Debug)]
struct Good {
    proof: Arc<Proof>,
    /// Until when it counts without another question.
    fresh: Instant,
    expires: SystemTime,
    /// Its pod was known.
    met: bool,
}

/// What is known of one token.
#[derive(Clone, Debug)]
pub(super) enum Known {
    /// It was good lately.
    Good(Arc<Proof>),
    /// It was good once: to be asked again, and to be used while nobody answers.
    Stale(Arc<Proof>),
    /// It was denied lately.
    Denied(Denied),
    /// Nothing.
    Nothing,
}

// === impl Answers ===

impl Answers {
    /// What is known of a token now.
    pub(super) fn of(&self, hash: &Hash) -> Known {
        if let Some((denied, at)) = lock(&self.denied).get(hash)
            && at.elapsed() < DENIED
        {
            return Known::Denied(denied.clone());
        }
        match lock(&self.good).get(hash) {
            Some(good) if good.expires <= SystemTime::now() => Known::Nothing,
            Some(good) if good.fresh > Instant::now() => Known::Good(good.proof.clone()),
            Some(good) => Known::Stale(good.proof.clone()),
            None => Known::Nothing,
        }
    }

    /// The API server vouched for a token, which ends by itself at `expires`.
    pub(super) fn good(&self, hash: Hash, proof: Arc<Proof>, expires: SystemTime) {
        lock(&self.denied).remove(&hash);
        let mut all = lock(&self.good);
        if all.len() >= MOST {
            let now = SystemTime::now();
            all.retain(|_, good| good.expires > now);
        }
        let met = all.get(&hash).is_some_and(|good| good.met);
        drop_oldest(&mut all, |good| good.fresh);
        let good = Good {
            proof,
            fresh: Instant::now() + FRESH,
            expires,
            met,
        };
        all.insert(hash, good);
    }

    /// The pod of a token that was good is known: when it is not any more, it is gone.
    pub(super) fn meet(&self, hash: &Hash) {
        if let Some(good) = lock(&self.good).get_mut(hash) {
            good.met = true;
        }
    }

    /// Whether the pod of a token was known.
    pub(super) fn met(&self, hash: &Hash) -> bool {
        lock(&self.good).get(hash).is_some_and(|good| good.met)
    }

    /// Nobody answered: what is known counts a little longer, so that not every call has to wait.
    pub(super) fn put_off(&self, hash: &Hash) {
        if let Some(good) = lock(&self.good).get_mut(hash) {
            good.fresh = Instant::now() + PUT_OFF;
        }
    }

    /// The API server did not vouch for a token.
    pub(super) fn denied(&self, hash: Hash, denied: Denied) {
        lock(&self.good).remove(&hash);
        let mut all = lock(&self.denied);
        drop_oldest(&mut all, |(_, at)| *at);
        all.insert(hash, (denied, Instant::now()));
    }

    /// Waits for others who ask the same. Whoever has the answer looks first what they were told.
    pub(super) async fn ask(&self, hash: &Hash) -> Asking<'_> {
        let turn = lock(&self.asking).entry(*hash).or_default().clone();
        // Made before the wait: who gives up while it waits leaves nothing behind either.
        let mut asking = Asking {
            answers: self,
            hash: *hash,
            turn,
            held: None,
        };
        asking.held = Some(Arc::clone(&asking.turn).lock_owned().await);
        asking
    }
}

/// The right to ask of one token, or a place among those who wait for it.
pub(super) struct Asking<'a> {
    answers: &'a Answers,
    hash: Hash,
    turn: Arc<tokio::sync::Mutex<()>>,
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asking = lock(&self.answers.asking);
        drop(self.held.take());
        // The map and this hold it; anybody else waits for it.
        if Arc::strong_count(&self.turn) <= 2 {
            asking.remove(&self.hash);
        }
    }
}

fn drop_oldest<T>(all: &mut HashMap<Hash, T>, at: impl Fn(&T) -> Instant) {
    if all.len() < MOST {
        return;
    }
    let oldest = all.iter().min_by_key(|(_, one)| at(one));
    if let Some(oldest) = oldest.map(|(hash, _)| *hash) {
        all.remove(&oldest);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Arc<Proof> {
        Arc::new(super::super::testing::proof())
    }

    fn hash(number: usize) -> Hash {
        super::super::hash_of(&number.to_string())
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3600)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_fresh_for_a_while_and_then_only_better_than_none() {
        let answers = Answers::default();
        assert!(matches!(answers.of(&hash(1)), Known::Nothing));
        answers.good(hash(1), proof(), later());
        assert!(matches!(answers.of(&hash(1)), Known::Good(_)));
        tokio::time::advance(FRESH).await;
        assert!(matches!(answers.of(&hash(1)), Known::Stale(_)));
        answers.denied(hash(1), Denied::NotAuthenticated);
        assert!(matches!(answers.of(&hash(1)), Known::Denied(_)));
        tokio::time::advance(DENIED).await;
        assert!(matches!(answers.of(&hash(1)), Known::Nothing));
        answers.good(hash(2), proof(), SystemTime::now());
        assert!(matches!(answers.of(&hash(2)), Known::Nothing));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_forgotten_and_drives_nothing_good_out() {
        let answers = Answers::default();
        answers.good(hash(0), proof(), later());
        for number in 1..MOST + 10 {
            answers.denied(hash(number), Denied::NotAuthenticated);
        }
        assert_eq!(lock(&answers.denied).len(), MOST);
        assert!(matches!(answers.of(&hash(0)), Known::Good(_)));
        for number in 1..MOST + 10 {
            answers.good(hash(number), proof(), later());
        }
        assert_eq!(lock(&answers.good).len(), MOST);
    }

    #[tokio::test]
    async fn who_asks_the_same_waits_and_nothing_stays_behind() {
        let answers = Answers::default();
        let (one, two) = (hash(1), hash(2));
        let first = answers.ask(&one).await;
        let (mut second, other) = (Box::pin(answers.ask(&one)), answers.ask(&two).await);
        assert!(futures_util::FutureExt::now_or_never(&mut second).is_none());
        drop((first, other));
        drop(second.await);
        assert!(lock(&answers.asking).is_empty());
        let first = answers.ask(&one).await;
        let mut second = Box::pin(answers.ask(&one));
        assert!(futures_util::FutureExt::now_or_never(&mut second).is_none());
        drop(first);
        // It was woken, and gives up before it looks.
        drop(second);
        assert!(lock(&answers.asking).is_empty());
    }
}

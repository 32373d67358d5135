// SPDX-License-Identifier: Apache-2.0
//! What the watches have found, brought together.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use culvert_manifests::Objects;
use tokio::sync::{Notify, watch};

use crate::{
    fault::Fault,
    kinds::{Key, Watched, is_same},
    status::{Kind, Status},
    wire::{Item, Unreadable},
};

/// Changes that come within this time are told together.
const COALESCE: Duration = Duration::from_millis(50);

/// Of so many unreadable objects the names are kept.
const MAX_UNREADABLE: usize = 100;

/// What the watches have found so far.
#[derive(Debug)]
pub(crate) struct Collected {
    objects: Mutex<Objects>,
    status: watch::Sender<Status>,
    changed: Notify,
}

// === impl Collected ===

impl Collected {
    pub(crate) fn new(kinds: &[&'static str]) -> Self {
        let kinds = kinds.iter().map(|kind| (*kind, Kind::default())).collect();
        Self {
            objects: Mutex::default(),
            status: watch::Sender::new(Status { kinds }),
            changed: Notify::new(),
        }
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Tells the objects for ever, from when each kind was listed.
    pub(crate) async fn tell(
        &self,
        objects: watch::Sender<Arc<Objects>>,
        synced: watch::Sender<bool>,
    ) {
        loop {
            self.changed.notified().await;
            if self.status.borrow().synced() {
                objects.send_replace(Arc::new(self.snapshot()));
                synced.send_replace(true);
                tokio::time::sleep(COALESCE).await;
            }
        }
    }

    fn snapshot(&self) -> Objects {
        let objects = self.objects.lock();
        objects.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<K: Watched>(
        &self,
        change: impl FnOnce(&mut BTreeMap<K::Key, Arc<K>>) -> bool,
    ) -> bool {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        change(K::of(&mut objects))
    }

    fn notify_if(&self, modified: bool) {
        if modified {
            self.changed.notify_one();
        }
    }

    /// All objects of a kind. Of what can't be read stays what it was.
    pub(crate) fn listed<K: Watched>(&self, items: Vec<Item<K>>) {
        let unreadable = items.iter().filter_map(|item| match item {
            Item::Good(..) => None,
            Item::Bad(bad) => Some(named(bad)),
        });
        let unreadable: BTreeMap<_, _> = unreadable.take(MAX_UNREADABLE).collect();
        let mut modified = self.change::<K>(|known| replace(known, items));
        self.kind::<K>(|kind| {
            // An empty list changes nothing, and may be the last that was waited for.
            modified |= !kind.listed;
            kind.listed = true;
            kind.lists += 1;
            kind.unreadable = unreadable;
        });
        self.notify_if(modified);
    }

    /// An object is new or has changed.
    pub(crate) fn applied<K: Watched>(&self, item: Item<K>) {
        match item {
            Item::Good(key, object) => {
                self.readable::<K>(&key);
                let modified = self.change::<K>(|known| insert(known, key, object));
                self.notify_if(modified);
            }
            Item::Bad(bad) => {
                let unreadable = BTreeMap::from([named(&bad)]);
                self.kind::<K>(|kind| {
                    if kind.unreadable.len() < MAX_UNREADABLE {
                        kind.unreadable.extend(unreadable);
                    }
                });
            }
        }
    }

    /// An object is gone.
    pub(crate) fn deleted<K: Watched>(&self, key: &K::Key) {
        self.readable::<K>(key);
        let modified = self.change::<K>(|known| known.remove(key).is_some());
        self.notify_if(modified);
    }

    /// The watch did not go on.
    pub(crate) fn failed<K: Watched>(&self, fault: &Fault) {
        let error = fault.to_string();
        tracing::debug!(kind = K::KIND, error, "A list or a watch did not go on");
        self.kind::<K>(|kind| {
            kind.failures += 1;
            kind.failing_since.get_or_insert_with(Instant::now);
            kind.error = Some(error);
        });
    }

    /// The watch goes on.
    pub(crate) fn well<K: Watched>(&self) {
        self.status.send_if_modified(|status| {
            let kind = status.kinds.entry(K::KIND).or_default();
            kind.error = None;
            kind.failing_since.take().is_some()
        });
    }

    fn readable<K: Watched>(&self, key: &K::Key) {
        self.status.send_if_modified(|status| {
            let kind = status.kinds.entry(K::KIND).or_default();
            !kind.unreadable.is_empty() && kind.unreadable.remove(&key.words()).is_some()
        });
    }

    fn kind<K: Watched>(&self, change: impl FnOnce(&mut Kind)) {
        self.status
            .send_modify(|status| change(status.kinds.entry(K::KIND).or_default()));
    }
}

fn named<K: Key>(bad: &Unreadable<K>) -> (String, String) {
    let name = bad.key.as_ref().map_or_else(|| "?".to_owned(), Key::words);
    (name, bad.reason.clone())
}

/// Takes all items in place of what is known. True: something changed.
fn replace<K: Watched>(known: &mut BTreeMap<K::Key, Arc<K>>, items: Vec<Item<K>>) -> bool {
    let mut old = std::mem::take(known);
    let before = old.len();
    let mut modified = false;
    for item in items {
        match item {
            Item::Good(key, mut object) => {
                let same = old.remove(&key).filter(|old| is_same(&**old, &mut object));
                modified |= same.is_none();
                known.insert(key, same.unwrap_or_else(|| object.into()));
            }
            Item::Bad(bad) => known.extend(bad.key.and_then(|key| old.remove_entry(&key))),
        }
    }
    modified || known.len() != before
}

/// True: it is not what was known.
fn insert<K: Watched>(
    known: &mut BTreeMap<K::Key, Arc<K>>,
    key: K::Key,
    mut object: Box<K>,
) -> bool {
    match known.entry(key) {
        Entry::Occupied(held) if is_same(&**held.get(), &mut object) => return false,
        Entry::Occupied(mut held) => drop(held.insert(object.into())),
        Entry::Vacant(free) => drop(free.insert(object.into())),
    }
    true
}

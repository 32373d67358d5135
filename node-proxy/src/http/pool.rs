// SPDX-License-Identifier: Apache-2.0
//! The connections that one pod's requests go out on. Who shares one is the same workload, at the same
//! address, and asks the same server over the same protocol.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use culvert_api::identity::Identity;

use super::{Version, host::Host};

/// How often connections are looked at that nobody uses.
const TRIM: Duration = Duration::from_secs(1);

/// The connections of a pod. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool(Arc<Mutex<Hosts>>);

#[derive(Debug, Default)]
struct Hosts {
    hosts: HashMap<Key, Arc<Host>>,
    trimmed: bool,
}

/// What connections must have in common to be shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The address that the application chose.
    pub(super) source: IpAddr,
    pub(super) to: SocketAddr,
    /// Who has to be there. None: in plaintext.
    pub(super) peer: Option<Identity>,
    pub(super) version: Version,
}

// === impl Pool ===

impl Pool {
    /// The connections to one server.
    pub(super) fn host(&self, key: Key) -> Arc<Host> {
        let mut hosts = lock(&self.0);
        if !hosts.trimmed {
            hosts.trimmed = true;
            tokio::spawn(trim(Arc::downgrade(&self.0)));
        }
        let made = |key: &Key| Arc::new(Host::new(key.version));
        let host = hosts.hosts.entry(key);
        host.or_insert_with_key(made).clone()
    }

    /// The pod is gone: what is under way goes on.
    pub(crate) fn close(&self) {
        lock(&self.0).hosts.clear();
    }
}

/// Runs while there is anything to trim.
async fn trim(hosts: Weak<Mutex<Hosts>>) {
    loop {
        tokio::time::sleep(TRIM).await;
        let Some(hosts) = hosts.upgrade() else { return };
        let (mut hosts, now) = (lock(&hosts), Instant::now());
        let used = |host: &Arc<Host>| host.trim(now) || Arc::strong_count(host) > 1;
        hosts.hosts.retain(|_, host| used(host));
        if hosts.hosts.is_empty() {
            hosts.trimmed = false;
            return;
        }
    }
}

fn lock(hosts: &Mutex<Hosts>) -> MutexGuard<'_, Hosts> {
    hosts.lock().unwrap_or_else(PoisonError::into_inner)
}

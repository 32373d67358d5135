// SPDX-License-Identifier: Apache-2.0
//! What the connect hooks know of each pod.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use culvert_ebpf_abi::{
    exclusions::{Port, Subnet},
    map,
    pod::{ConnectCounters, ENROLLED, State, UP},
};

use crate::{
    Error, Exclusions,
    exclusions::{self, Keys, Trie},
    objects::{self, found, missing_is_ok},
};

/// The maps of the connect hooks.
#[derive(Debug)]
pub(super) struct Connects {
    pods: HashMap<MapData, u64, State>,
    counters: HashMap<MapData, u64, ConnectCounters>,
    subnets: Trie<Subnet>,
    ports: Trie<Port>,
    // What the tries hold of each pod, so that nobody has to search them.
    excluded: BTreeMap<u64, Excluded>,
}

#[derive(Clone, Debug, Default)]
struct Excluded {
    subnets: Keys<Subnet>,
    ports: Keys<Port>,
}

// === impl Connects ===

impl Connects {
    pub(super) fn open(object: &mut Ebpf) -> Result<Self, Error> {
        let mut connects = Self {
            pods: objects::take_map(object, map::PODS)?,
            counters: objects::take_map(object, map::CONNECTS)?,
            subnets: objects::take_map(object, map::OUT_SUBNETS)?,
            ports: objects::take_map(object, map::OUT_PORTS)?,
            excluded: BTreeMap::new(),
        };
        for key in exclusions::read(&connects.subnets)? {
            connects.excluded_by(key.1.scope).subnets.insert(key);
        }
        for key in exclusions::read(&connects.ports)? {
            connects.excluded_by(key.1.scope).ports.insert(key);
        }
        Ok(connects)
    }

    fn excluded_by(&mut self, cookie: u64) -> &mut Excluded {
        self.excluded.entry(cookie).or_default()
    }

    /// The state comes last: until then the hooks do not know the pod.
    pub(super) fn enrol(&mut self, cookie: u64, wanted: &Exclusions) -> Result<(), Error> {
        let wanted = Excluded {
            subnets: exclusions::subnets(cookie, &wanted.subnets)?,
            ports: exclusions::ports(cookie, &wanted.outbound_ports)?,
        };
        self.exclude(cookie, wanted)?;
        if counters(&self.counters, cookie)?.is_none() {
            self.counters
                .insert(cookie, ConnectCounters::default(), 0)
                .map_err(Error::kernel(format!("make the counters of {cookie}")))?;
        }
        let flags = self.state(cookie)?.map_or(UP, |state| state.flags);
        self.set_state(cookie, flags | ENROLLED)
    }

    pub(super) fn set_up(&mut self, cookie: u64, up: bool) -> Result<(), Error> {
        let state = self.state(cookie)?.ok_or(Error::NotEnrolled { cookie })?;
        let flags = if up {
            state.flags | UP
        } else {
            state.flags & !UP
        };
        self.set_state(cookie, flags)
    }

    /// The pod's state in the hooks' map: enrolled, and up.
    pub(super) fn steers(&self, cookie: u64) -> Result<(bool, bool), Error> {
        let flags = self.state(cookie)?.map_or(0, |state| state.flags);
        Ok((flags & ENROLLED != 0, flags & UP != 0))
    }

    /// `attached`: the pod may still have sockets whose marks mean something, so it stays known.
    pub(super) fn withdraw(&mut self, cookie: u64, attached: bool) -> Result<(), Error> {
        match self.state(cookie)? {
            Some(state) if attached => self.set_state(cookie, state.flags & !ENROLLED)?,
            _ => self.forget(cookie)?,
        }
        self.exclude(cookie, Excluded::default())
    }

    pub(super) fn forget_withdrawn(&mut self, cookie: u64) -> Result<(), Error> {
        match self.state(cookie)? {
            Some(state) if state.flags & ENROLLED == 0 => self.forget(cookie),
            _ => Ok(()),
        }
    }

    fn forget(&mut self, cookie: u64) -> Result<(), Error> {
        missing_is_ok(self.pods.remove(&cookie))
            .and_then(|()| missing_is_ok(self.counters.remove(&cookie)))
            .map_err(Error::kernel(format!("forget the pod {cookie}")))
    }

    pub(super) fn counters(&self, cookie: u64) -> Result<ConnectCounters, Error> {
        Ok(counters(&self.counters, cookie)?.unwrap_or_default())
    }

    fn state(&self, cookie: u64) -> Result<Option<State>, Error> {
        found(self.pods.get(&cookie, 0))
            .map_err(Error::kernel(format!("read the state of the pod {cookie}")))
    }

    fn set_state(&mut self, cookie: u64, flags: u32) -> Result<(), Error> {
        self.pods
            .insert(cookie, State { flags, pad: 0 }, 0)
            .map_err(Error::kernel(format!("set the state of the pod {cookie}")))
    }

    /// When it fails half way, what is remembered is the union: nothing is lost track of.
    fn exclude(&mut self, cookie: u64, wanted: Excluded) -> Result<(), Error> {
        let old = self.excluded.get(&cookie).cloned().unwrap_or_default();
        let both = self.excluded_by(cookie);
        both.subnets.extend(&wanted.subnets);
        both.ports.extend(&wanted.ports);
        exclusions::replace(&mut self.subnets, &old.subnets, &wanted.subnets)?;
        exclusions::replace(&mut self.ports, &old.ports, &wanted.ports)?;
        self.excluded.insert(cookie, wanted);
        Ok(())
    }
}

fn counters(
    map: &HashMap<MapData, u64, ConnectCounters>,
    cookie: u64,
) -> Result<Option<ConnectCounters>, Error> {
    found(map.get(&cookie, 0)).map_err(Error::kernel(format!("read the counters of {cookie}")))
}

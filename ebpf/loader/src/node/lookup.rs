// SPDX-License-Identifier: Apache-2.0
//! The `sk_lookup` program of one pod.

use std::{
    collections::BTreeSet,
    fs::File,
    net::IpAddr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, SockMap},
    programs::{SkLookup, links::FdLink},
};
use culvert_ebpf_abi::{Address, MAX_OWN, map, pod::LookupCounters, program};

use crate::{
    Error, Exclusions, PodOptions,
    exclusions::{self, Keys},
    links,
    objects::{self, Objects, missing_is_ok},
    pins,
};

/// A pod's program, as attached by this agent.
#[derive(Debug)]
pub(super) struct Lookup {
    own: HashMap<MapData, Address, u32>,
    addresses: BTreeSet<Address>,
}

// === impl Lookup ===

impl Lookup {
    /// The maps are filled before the program meets its first connection.
    pub(super) fn attach(
        objects: &mut Objects,
        dir: &Path,
        pod: &PodOptions<'_>,
    ) -> Result<Self, Error> {
        let mut object = objects.load_pod(dir.join(map::LOOKUPS))?;
        // From here the program holds its maps; until here the object has to.
        load(&mut object)?;
        set_listeners(&mut object, pod.listeners)?;
        set_exclusions(&mut object, pod.exclusions)?;
        let mut lookup = Self {
            own: objects::take_map(&mut object, map::OWN)?,
            addresses: BTreeSet::new(),
        };
        lookup.set_own(pod.own)?;
        attach(&mut object, &dir.join(pins::LINK), pod)?;
        Ok(lookup)
    }

    /// Adds first, so that an address that stays is never missing. When it fails half way, what is
    /// remembered is the union: nothing is lost track of.
    pub(super) fn set_own(&mut self, own: &[IpAddr]) -> Result<(), Error> {
        let wanted: BTreeSet<Address> = own.iter().map(|addr| Address::from(*addr)).collect();
        if wanted.len() > MAX_OWN {
            return Err(Error::TooManyAddresses {
                got: wanted.len(),
                max: MAX_OWN,
            });
        }
        let old = self.addresses.clone();
        self.addresses.extend(&wanted);
        for address in wanted.difference(&old) {
            self.own
                .insert(address, 1, 0)
                .map_err(Error::kernel("add an own address"))?;
        }
        for address in old.difference(&wanted) {
            missing_is_ok(self.own.remove(address))
                .map_err(Error::kernel("remove an own address"))?;
        }
        self.addresses = wanted;
        Ok(())
    }
}

fn load(object: &mut Ebpf) -> Result<(), Error> {
    let name = program::LOOKUP;
    let program: &mut SkLookup = objects::program(object, name)?;
    objects::load(name, || program.load())
}

fn set_listeners(object: &mut Ebpf, listeners: [Option<BorrowedFd<'_>>; 4]) -> Result<(), Error> {
    let mut map: SockMap<MapData> = objects::take_map(object, map::LISTENERS)?;
    for (slot, listener) in (0..).zip(listeners) {
        if let Some(listener) = listener {
            map.set(slot, &listener, 0)
                .map_err(Error::kernel(format!("put a listener into slot {slot}")))?;
        }
    }
    Ok(())
}

fn set_exclusions(object: &mut Ebpf, wanted: &Exclusions) -> Result<(), Error> {
    let none = Keys::new();
    let subnets = exclusions::subnets(0, &wanted.subnets)?;
    exclusions::replace(
        &mut objects::take_map(object, map::IN_SUBNETS)?,
        &none,
        &subnets,
    )?;
    let none = Keys::new();
    let ports = exclusions::ports(0, &wanted.inbound_ports)?;
    exclusions::replace(
        &mut objects::take_map(object, map::IN_PORTS)?,
        &none,
        &ports,
    )
}

fn attach(object: &mut Ebpf, pin: &Path, pod: &PodOptions<'_>) -> Result<(), Error> {
    let name = program::LOOKUP;
    let doing = format!("attach {name} to the network namespace {}", pod.cookie);
    let program: &mut SkLookup = objects::program(object, name)?;
    let fd = program
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(Error::kernel(&*doing))?;
    let netns = pod.netns.try_clone_to_owned().map(File::from);
    let inode = netns
        .and_then(|netns| netns.metadata())
        .map_err(Error::kernel(&*doing))?
        .ino();
    links::put(pin, inode, fd.as_fd(), || {
        program
            .attach(pod.netns)
            .and_then(|id| program.take_link(id))
            .map(FdLink::from)
            .map_err(Error::kernel(&*doing))
    })
    .map(drop)
}

/// From the pin, since an agent that did not attach the pod may ask.
pub(super) fn counters(dir: &Path) -> Result<LookupCounters, Error> {
    let pin = dir.join(map::LOOKUPS);
    if !pin.exists() {
        return Ok(LookupCounters::default());
    }
    let doing = || Error::kernel(format!("read the counters at {}", pin.display()));
    let data = MapData::from_pin(&pin).map_err(doing())?;
    let map = Map::from_map_data(data).map_err(doing())?;
    Array::<MapData, LookupCounters>::try_from(map)
        .and_then(|array| array.get(&0, 0))
        .map_err(doing())
}

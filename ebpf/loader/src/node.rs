// SPDX-License-Identifier: Apache-2.0
//! What one node's agent keeps in the kernel.

mod connect;
mod hooks;
mod lookup;

use std::{collections::BTreeMap, net::IpAddr, os::fd::BorrowedFd, path::Path};

use aya::maps::{MapData, SkStorage};
use culvert_ebpf_abi::map;

use self::{connect::Connects, lookup::Lookup};
use crate::{
    Counters, Error, Exclusions, NodeOptions, PodOptions, links,
    logs::LogReader,
    objects::{self, Objects},
    pins::{self, Pins},
};

/// The programs, links and maps of one node. One process at a time may have a directory's.
///
/// Dropping it detaches nothing: what is pinned goes on.
#[derive(Debug)]
pub struct Node {
    pins: Pins,
    objects: Objects,
    connects: Connects,
    exempt: SkStorage<MapData, u32>,
    lookups: BTreeMap<u64, Lookup>,
    _log: Option<LogReader>,
}

// === impl Node ===

impl Node {
    /// Loads, attaches and pins the node's programs, or takes over those of an earlier agent:
    /// its maps are kept, and its programs replaced behind their links.
    ///
    /// # Errors
    /// [`Error::NotBpffs`], [`Error::NotCgroup2`], or the kernel's refusal.
    pub fn load(options: &NodeOptions) -> Result<Node, Error> {
        let pins = Pins::make(&options.dir)?;
        let dir = pins.node();
        pins.inherit_exemptions()?;
        let mut objects = Objects::new(&dir, options.debug);
        let mut object = objects.load_node()?;
        // The maps of an earlier agent are read before anything changes.
        let connects = Connects::open(&mut object)?;
        let exempt = objects::take_map(&mut object, map::EXEMPT)?;
        hooks::attach(&mut object, &dir, options)?;
        let log = options.debug.then(|| LogReader::start(&mut object));
        Ok(Node {
            pins,
            objects,
            connects,
            exempt,
            lookups: BTreeMap::new(),
            _log: log.transpose()?,
        })
    }

    /// Notes the probes of the kubelet in this cgroup (v2), and of no other: to be called again and
    /// again, since a kubelet that is started again may get another cgroup of the same path.
    /// Whether anything had to be done; nothing has after [`Self::remove_all`].
    ///
    /// # Errors
    /// [`Error::NotCgroup2`], also when it is gone, or the kernel's refusal; what was noted before
    /// still is.
    pub fn follow_kubelet(&mut self, cgroup: Option<&Path>) -> Result<bool, Error> {
        let dir = self.pins.node();
        if !dir.exists() || hooks::are_noted(&dir, cgroup)? {
            return Ok(false);
        }
        let mut object = self.objects.load_node()?;
        hooks::attach_notes(&mut object, &dir, cgroup)?;
        Ok(true)
    }

    /// Begins to mark the connections of a network namespace. A new one is up; an enrolled one
    /// stays as it is and its exclusions are replaced.
    ///
    /// # Errors
    /// [`Error::Exclusion`], or the kernel's refusal.
    pub fn enrol(&mut self, cookie: u64, exclusions: &Exclusions) -> Result<(), Error> {
        self.connects.enrol(cookie, exclusions)
    }

    /// Says whether the pod's proxy can be reached; while not, connect() fails with EPERM.
    ///
    /// # Errors
    /// [`Error::NotEnrolled`], or the kernel's refusal.
    pub fn set_up(&mut self, cookie: u64, up: bool) -> Result<(), Error> {
        self.connects.set_up(cookie, up)
    }

    /// Whether connections of a network namespace are marked, as [`Self::enrol`] and
    /// [`Self::set_up`] left it: enrolled, and up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn steers(&self, cookie: u64) -> Result<(bool, bool), Error> {
        self.connects.steers(cookie)
    }

    /// Ends the marking of a network namespace's connections; that it never began is no error.
    /// While the pod is attached its sockets' old marks are cleared when they connect again.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn withdraw(&mut self, cookie: u64) -> Result<(), Error> {
        let attached = self.pins.pod(cookie).exists();
        self.connects.withdraw(cookie, attached)
    }

    /// Makes a socket exempt from the connect hooks for as long as it lives; what a listener
    /// accepts inherits it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn exempt(&mut self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.exempt
            .insert(&socket, 1, 0)
            .map_err(Error::kernel("exempt a socket"))
    }

    /// Attaches the pod's `sk_lookup` program. Where one is attached it is replaced in one step,
    /// with the listeners, own addresses and exclusions; its counters go on.
    ///
    /// # Errors
    /// [`Error::Exclusion`], [`Error::TooManyAddresses`], or the kernel's refusal; the pod is
    /// then as it was.
    pub fn attach_pod(&mut self, pod: &PodOptions<'_>) -> Result<(), Error> {
        let dir = self.pins.pod(pod.cookie);
        pins::make_dir(&dir)?;
        match Lookup::attach(&mut self.objects, &dir, pod) {
            Ok(lookup) => {
                self.lookups.insert(pod.cookie, lookup);
                Ok(())
            }
            Err(error) => {
                pins::remove_unless_linked(&dir);
                Err(error)
            }
        }
    }

    /// Replaces the pod's own addresses.
    ///
    /// # Errors
    /// [`Error::NotAttached`], [`Error::TooManyAddresses`], or the kernel's refusal.
    pub fn set_own(&mut self, cookie: u64, own: &[IpAddr]) -> Result<(), Error> {
        self.lookups
            .get_mut(&cookie)
            .ok_or(Error::NotAttached { cookie })?
            .set_own(own)
    }

    /// Detaches the pod's program and removes its pins; that there are none is no error. The
    /// pod's counters are forgotten when it is withdrawn as well.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn detach_pod(&mut self, cookie: u64) -> Result<(), Error> {
        pins::remove_tree(&self.pins.pod(cookie))?;
        self.lookups.remove(&cookie);
        self.connects.forget_withdrawn(cookie)
    }

    /// The cookies of the pods whose programs are pinned, or were about to be.
    ///
    /// # Errors
    /// What reading the directory said.
    pub fn pinned_pods(&self) -> Result<Vec<u64>, Error> {
        self.pins.cookies()
    }

    /// Whether the pod has pins, be they half made.
    pub fn is_pinned(&self, cookie: u64) -> bool {
        self.pins.pod(cookie).exists()
    }

    /// Whether the pod's program is attached to a network namespace that exists.
    ///
    /// # Errors
    /// What opening and inspecting the link said.
    pub fn is_live(&self, cookie: u64) -> Result<bool, Error> {
        links::is_live(&self.pins.pod(cookie).join(pins::LINK))
    }

    /// The cookies of live pods that only programs of other versions steer.
    ///
    /// # Errors
    /// What reading the directories and inspecting the links said.
    pub fn left_to_other_versions(&self) -> Result<Vec<u64>, Error> {
        let mut left = Vec::new();
        for (cookie, dir) in self.pins.of_other_versions()? {
            if links::is_live(&dir.join(pins::LINK))? && !self.is_live(cookie)? {
                left.push(cookie);
            }
        }
        Ok(left)
    }

    /// Removes what agents of other versions of the programs pinned, and counts those versions.
    /// To be called when all pods are attached again.
    ///
    /// # Errors
    /// What reading and removing said.
    pub fn collect_other_versions(&self) -> Result<usize, Error> {
        self.pins.collect_other_versions()
    }

    /// Detaches and unpins everything, of all versions: nothing is steered any more. What is loaded
    /// goes with this process.
    ///
    /// # Errors
    /// What reading and removing said.
    pub fn remove_all(&mut self) -> Result<(), Error> {
        self.lookups.clear();
        self.pins.remove_all()
    }

    /// What the programs did for a pod; zeros for one that is neither enrolled nor attached.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn counters(&self, cookie: u64) -> Result<Counters, Error> {
        let connects = self.connects.counters(cookie)?;
        let lookups = lookup::counters(&self.pins.pod(cookie))?;
        Ok(Counters {
            steered_out: connects.steered,
            refused_down: connects.refused_down,
            refused_bound_device: connects.refused_bound_device,
            excluded_out: connects.excluded,
            exempt: connects.exempt,
            steered_in: lookups.inbound,
            delivered_out: lookups.outbound,
            dropped: lookups.dropped,
            excluded_in: lookups.excluded,
            passed_probe: lookups.probe,
        })
    }
}

// An agent keeps it where its pods are, whatever thread that is.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Node>();
};

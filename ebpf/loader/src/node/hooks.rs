// SPDX-License-Identifier: Apache-2.0
//! The programs that are attached to cgroups.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
    programs::{CgroupAttachMode, CgroupSockAddr, SockOps, links::FdLink},
};
use culvert_ebpf_abi::{map, probe::Tuple, program};

use crate::{
    Error, NodeOptions, links,
    objects::{self, missing_is_ok},
    pins,
};

/// The name of the link to the kubelet's cgroup.
const NOTES: &str = "notes";

/// Attaches the connect hooks and the probe notes.
pub(super) fn attach(object: &mut Ebpf, dir: &Path, options: &NodeOptions) -> Result<(), Error> {
    let hooks = [
        (program::CONNECT4, "connect4"),
        (program::CONNECT6, "connect6"),
    ];
    for (name, pin) in hooks {
        attach_connect(object, name, &dir.join(pin), &options.cgroup)?;
    }
    attach_notes(object, dir, options.kubelet_cgroup.as_deref())
}

/// Notes the probes of this cgroup, and of no other.
pub(super) fn attach_notes(
    object: &mut Ebpf,
    dir: &Path,
    cgroup: Option<&Path>,
) -> Result<(), Error> {
    let pin = dir.join(NOTES);
    let anew = match cgroup {
        Some(cgroup) => put_notes(object, &pin, cgroup)?,
        None => pins::remove_pin(&pin).map(|()| true)?,
    };
    // Nobody removes the notes of a program that is gone.
    if anew { forget_notes(object) } else { Ok(()) }
}

/// Whether the probes of this cgroup are noted, and of no other: one that was made again has the
/// same path and another id.
pub(super) fn are_noted(dir: &Path, cgroup: Option<&Path>) -> Result<bool, Error> {
    let attached_to = links::target(&dir.join(NOTES))?;
    let cgroup = cgroup.map(open_cgroup).transpose()?;
    Ok(attached_to == cgroup.map(|(_, id)| id))
}

fn attach_connect(object: &mut Ebpf, name: &str, pin: &Path, cgroup: &Path) -> Result<(), Error> {
    let doing = attaching(name, cgroup);
    let program: &mut CgroupSockAddr = objects::program(object, name)?;
    objects::load(name, || program.load())?;
    let fd = program
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(Error::kernel(&*doing))?;
    let (cgroup, id) = open_cgroup(cgroup)?;
    links::put(pin, id, fd.as_fd(), || {
        let link = program
            .attach(cgroup, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(Error::kernel(&*doing))?;
        FdLink::try_from(link).map_err(Error::kernel(&*doing))
    })
    .map(drop)
}

fn put_notes(object: &mut Ebpf, pin: &Path, cgroup: &Path) -> Result<bool, Error> {
    let name = program::PROBE_NOTES;
    let doing = attaching(name, cgroup);
    let program: &mut SockOps = objects::program(object, name)?;
    objects::load(name, || program.load())?;
    let fd = program
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(Error::kernel(&*doing))?;
    let (cgroup, id) = open_cgroup(cgroup)?;
    links::put(pin, id, fd.as_fd(), || {
        let link = program
            .attach(cgroup, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(Error::kernel(&*doing))?;
        FdLink::try_from(link).map_err(Error::kernel(&*doing))
    })
}

fn attaching(name: &str, cgroup: &Path) -> String {
    format!(
        "attach {name} to {} (EPERM: a program that allows no others may be attached there or \
         above; see bpftool cgroup tree)",
        cgroup.display()
    )
}

/// The directory and the cgroup's id, which is its inode number
/// (<https://elixir.bootlin.com/linux/v6.18/source/include/linux/kernfs.h>).
fn open_cgroup(path: &Path) -> Result<(File, u64), Error> {
    if !pins::is_cgroup2(path) {
        return Err(Error::NotCgroup2 {
            cgroup: path.to_owned(),
        });
    }
    let dir = File::open(path).map_err(Error::io("open the cgroup", path))?;
    let id = dir
        .metadata()
        .map_err(Error::io("inspect the cgroup", path))?
        .ino();
    Ok((dir, id))
}

fn forget_notes(object: &mut Ebpf) -> Result<(), Error> {
    let mut notes: HashMap<MapData, Tuple, u32> = objects::take_map(object, map::PROBES)?;
    let known: Vec<Tuple> = notes.keys().filter_map(Result::ok).collect();
    for tuple in known {
        missing_is_ok(notes.remove(&tuple)).map_err(Error::kernel("forget a probe"))?;
    }
    Ok(())
}

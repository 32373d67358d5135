// SPDX-License-Identifier: Apache-2.0
//! The compiled programs, which `ebpf/build.sh` made, and how they are loaded.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Map, MapError},
    programs::{Program, ProgramError},
};
use culvert_ebpf_abi::map;

use crate::Error;

static NODE: &[u8] = include_bytes_aligned!("../../programs/node.bpf.o");
static POD: &[u8] = include_bytes_aligned!("../../programs/pod.bpf.o");

const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
/// Below all levels: the verifier removes what can never run.
static SILENT: u8 = 0;
static VERBOSE: u8 = aya_log::Level::Debug as u8;

/// libbpf's is 5 (<https://elixir.bootlin.com/linux/v6.18/source/tools/lib/bpf/libbpf_internal.h>).
const LOAD_ATTEMPTS: usize = 10;

/// The node's maps, which outlive agents.
const NODE_MAPS: [&str; 7] = [
    map::PODS,
    map::CONNECTS,
    map::OUT_SUBNETS,
    map::OUT_PORTS,
    map::EXEMPT,
    map::PROBES,
    map::LOGS,
];

/// One for all pods, because making an `EbpfLoader` reads the kernel's whole BTF, which takes tens
/// of milliseconds and which these programs do not need.
#[derive(Debug)]
pub(crate) struct Objects {
    loader: EbpfLoader<'static>,
}

// === impl Objects ===

impl Objects {
    /// `node_dir`: where the node's maps are pinned, or will be.
    pub(crate) fn new(node_dir: &Path, debug: bool) -> Self {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        let level = if debug { &VERBOSE } else { &SILENT };
        loader.override_global(LOG_LEVEL, level, true);
        for name in NODE_MAPS {
            loader.map_pin_path(name, node_dir.join(name));
        }
        Self { loader }
    }

    pub(crate) fn load_node(&mut self) -> Result<Ebpf, Error> {
        self.loader
            .load(NODE)
            .map_err(Error::kernel("load the node's eBPF object"))
    }

    /// `counters`: where the pod's counters are pinned, or will be.
    pub(crate) fn load_pod(&mut self, counters: PathBuf) -> Result<Ebpf, Error> {
        self.loader
            .map_pin_path(map::LOOKUPS, counters)
            .load(POD)
            .map_err(Error::kernel("load the pod's eBPF object"))
    }
}

/// Takes a map out of an object.
pub(crate) fn take_map<M>(object: &mut Ebpf, name: &str) -> Result<M, Error>
where
    M: TryFrom<Map, Error = MapError>,
{
    object
        .take_map(name)
        .ok_or(MapError::ElementNotFound)
        .and_then(M::try_from)
        .map_err(Error::kernel(format!("use the map {name}")))
}

/// Finds a program in an object.
pub(crate) fn program<'a, P>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    object
        .program_mut(name)
        .ok_or(ProgramError::NotLoaded)
        .and_then(TryFrom::try_from)
        .map_err(Error::kernel(format!("use the program {name}")))
}

/// Loads a program. The verifier gives up with EAGAIN when it finds a signal pending; it was seen
/// while other threads of the process started children
/// (<https://elixir.bootlin.com/linux/v6.18/source/kernel/bpf/verifier.c>, `signal_pending`).
pub(crate) fn load(
    name: &str,
    mut attempt: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), Error> {
    let mut result = attempt();
    for _ in 1..LOAD_ATTEMPTS {
        match &result {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == ErrorKind::WouldBlock =>
            {
                result = attempt();
            }
            _ => break,
        }
    }
    result.map_err(Error::kernel(format!("load {name}")))
}

/// What was looked up, if it was there.
pub(crate) fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// For removals.
pub(crate) fn missing_is_ok(result: Result<(), MapError>) -> Result<(), MapError> {
    found(result).map(drop)
}

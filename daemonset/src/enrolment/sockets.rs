// SPDX-License-Identifier: Apache-2.0
//! The unconnected sockets that the proxy dials from. It can set no mark and make no transparent
//! socket itself, nor enter the pod's namespace.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use culvert_api::agent::{MAX_FDS, SocketKind, SocketPool};
use culvert_ebpf_abi::MARK_IN;

use super::listeners::{plain, transparent};
use crate::{
    ebpf::{self, Ebpf},
    netns::{self, Netns},
};

/// No sockets for the proxy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A socket.
    #[error("could not make a socket in the pod's namespace: {0}")]
    Socket(#[from] io::Error),
    /// Its exemption. Such a socket never leaves the agent: its connections would loop.
    #[error(transparent)]
    Exempt(#[from] ebpf::Error),
}

/// Makes up to [`MAX_FDS`] sockets in the pod's namespace, all exempt from steering.
pub async fn batch(
    netns: &Netns,
    ebpf: &Ebpf,
    pool: SocketPool,
    count: usize,
) -> Result<Vec<Arc<OwnedFd>>, Error> {
    let count = count.min(MAX_FDS);
    let make = move || {
        (0..count)
            .map(|_| make(pool))
            .collect::<io::Result<Vec<_>>>()
    };
    let sockets = netns.run(make).await??;
    let exempt = ebpf.run(move |node| {
        sockets
            .iter()
            .try_for_each(|socket| node.exempt(socket.as_fd()))?;
        Ok(sockets)
    });
    Ok(exempt.await?)
}

fn make(pool: SocketPool) -> io::Result<Arc<OwnedFd>> {
    let socket = match pool.kind {
        SocketKind::OutboundLeg => plain(pool.family)?,
        SocketKind::InboundDial => {
            let socket = transparent(pool.family)?;
            socket.set_mark(MARK_IN)?;
            socket
        }
    };
    Ok(Arc::new(socket.into()))
}

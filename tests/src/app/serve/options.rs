// SPDX-License-Identifier: Apache-2.0
//! Options of listening sockets.

use std::{io, str::FromStr};

use nix::libc;
use socket2::{Protocol, Socket};

use crate::app::call::connecting::set_int;

/// What a listener has beside SO_REUSEADDR: `fast-open+mptcp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// TCP_FASTOPEN.
    pub fast_open: bool,
    /// IPPROTO_MPTCP.
    pub mptcp: bool,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// SO_OOBINLINE.
    pub inline: bool,
    /// The smallest SO_RCVBUF.
    pub tiny: bool,
}

// === impl Options ===

impl Options {
    pub(super) fn protocol(self) -> Option<Protocol> {
        self.mptcp.then_some(Protocol::MPTCP)
    }

    pub(super) fn set(self, socket: &Socket) -> io::Result<()> {
        if self.fast_open {
            set_int(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16)?;
        }
        if self.tiny {
            socket.set_recv_buffer_size(1)?;
        }
        if self.inline {
            socket.set_out_of_band_inline(true)?;
        }
        socket.set_reuse_port(self.reuse_port)
    }
}

impl FromStr for Options {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut options = Self::default();
        for option in text.split('+').filter(|option| !option.is_empty()) {
            *match option {
                "fast-open" => &mut options.fast_open,
                "mptcp" => &mut options.mptcp,
                "reuse-port" => &mut options.reuse_port,
                "inline" => &mut options.inline,
                "tiny" => &mut options.tiny,
                _ => anyhow::bail!(
                    "{option:?}: expected fast-open, mptcp, reuse-port, inline or tiny"
                ),
            } = true;
        }
        Ok(options)
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Why connections fail: the closed set of values of the label `error`.

use std::{fmt, io};

/// Why a connection was refused or broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// It would have come back to this proxy.
    GatewayLoop,
    /// A limit of open connections is reached.
    LoadShed,
    /// Control did not say what the destination is.
    Unresolved,
    /// The service had no endpoint in time.
    FailFast,
    /// Dialling failed, or the socket did.
    Io,
    /// A peer that is known to be meshed answered in plaintext.
    NotTls,
    /// A handshake failed, or a record was forged or cut off.
    Tls,
    /// The peer's certificate names somebody else.
    PeerIdentity,
    /// The workload has no valid certificate.
    NoCertificate,
    /// No complete ClientHello in time, under a policy that wants one.
    DetectionTimeout,
    /// Not a mesh peer, under a policy that lets nobody else in.
    IdentityRequired,
    /// The SNI is an identity of the mesh, but not the pod's.
    UnrecognizedName,
    /// A mesh peer that offers no protocol of this release.
    NoApplicationProtocol,
    /// The policy does not let the client in.
    Unauthorized,
    /// One direction ended and nothing moved in the other.
    HalfOpen,
    /// The peer no longer acknowledges.
    PeerTimeout,
    /// A bug.
    Unexpected,
}

impl Fault {
    /// What a broken connection counts as: the peer's TLS, or the socket.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Tls,
            _ => Self::Io,
        }
    }

    /// The label value.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::GatewayLoop => "gateway loop",
            Self::LoadShed => "loadshed",
            Self::Unresolved => "unresolved",
            Self::FailFast => "failfast",
            Self::Io => "i/o",
            Self::NotTls => "not tls",
            Self::Tls => "tls",
            Self::PeerIdentity => "peer identity",
            Self::NoCertificate => "no certificate",
            Self::DetectionTimeout => "tls detection timeout",
            Self::IdentityRequired => "identity required",
            Self::UnrecognizedName => "unrecognized name",
            Self::NoApplicationProtocol => "no application protocol",
            Self::Unauthorized => "unauthorized",
            Self::HalfOpen => "half-open timeout",
            Self::PeerTimeout => "peer timeout",
            Self::Unexpected => "unexpected",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// SPDX-License-Identifier: Apache-2.0
//! Keys on their way to the next proxy: a sealed memfd, which the agent holds and never reads.
//!
//! The bytes: `CULVERT1`, then the key and each certificate as a length (32 bits, little endian)
//! and its DER.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::material::{BadMaterial, Material};

const MAGIC: &[u8; 8] = b"CULVERT1";

/// The most bytes that are read.
const MOST: u64 = 64 << 10;

/// The most certificates of a chain.
const MOST_CERTIFICATES: usize = 8;

/// A stored key can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadKey {
    #[error("could not read it: {0}")]
    Io(#[from] io::Error),
    #[error("it is not a memfd with the seals {SEALS:?}, but has {got:?}")]
    Unsealed { got: SealFlag },
    #[error("its bytes are not a stored key: {reason}")]
    Malformed { reason: &'static str },
    #[error(transparent)]
    Material(#[from] BadMaterial),
}

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// Writes a key into a new memfd and seals it.
pub(super) fn seal(material: &Material) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"culvert-key", flags)?);
    file.write_all(&encode(material))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file.into())
}

/// Reads what [`seal`] wrote, in this process or in an earlier one.
pub(super) fn open(sealed: &OwnedFd) -> Result<Material, BadKey> {
    let got = fcntl(sealed.as_fd(), FcntlArg::F_GET_SEALS).map_err(io::Error::from)?;
    let got = SealFlag::from_bits_retain(got);
    if !got.contains(SEALS) {
        return Err(BadKey::Unsealed { got });
    }
    let file = File::from(sealed.try_clone()?);
    let length = file.metadata()?.len();
    if length > MOST {
        return Err(BadKey::Malformed {
            reason: "it is too long",
        });
    }
    let mut bytes = Zeroizing::new(vec![0; length as usize]);
    // Another descriptor of the same file shares its position.
    file.read_exact_at(&mut bytes, 0)?;
    decode(&bytes)
}

fn encode(material: &Material) -> Zeroizing<Vec<u8>> {
    let parts =
        || std::iter::once(&material.key[..]).chain(material.chain.iter().map(AsRef::as_ref));
    let length = MAGIC.len() + parts().map(|part| 4 + part.len()).sum::<usize>();
    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    bytes.extend_from_slice(MAGIC);
    for part in parts() {
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

fn decode(bytes: &[u8]) -> Result<Material, BadKey> {
    let mut rest = bytes.strip_prefix(MAGIC).ok_or(BadKey::Malformed {
        reason: "it does not begin with CULVERT1",
    })?;
    let key = Zeroizing::new(part(&mut rest)?.to_vec());
    let mut chain = Vec::new();
    while !rest.is_empty() {
        if chain.len() == MOST_CERTIFICATES {
            return Err(BadKey::Malformed {
                reason: "its chain is too long",
            });
        }
        chain.push(CertificateDer::from(part(&mut rest)?.to_vec()));
    }
    Ok(Material::new(key, chain)?)
}

fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BadKey> {
    let mut length = [0; 4];
    let cut = |_| BadKey::Malformed {
        reason: "it is cut off",
    };
    rest.read_exact(&mut length).map_err(cut)?;
    let length = u32::from_le_bytes(length) as usize;
    let reason = "it is cut off";
    rest.split_off(..length).ok_or(BadKey::Malformed { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_key_are_refused() {
        let cases: [&[u8]; 5] = [
            b"",
            b"CULVERT",
            b"CULVERT1",
            b"CULVERT1\xff\xff\xff\xffx",
            b"CULVERT1\0\0\0\0",
        ];
        for bytes in cases {
            assert!(decode(bytes).is_err(), "{bytes:?}");
        }
    }

    /// What a later release stores otherwise begins otherwise, and is refused by its name.
    #[test]
    fn a_key_of_an_earlier_release_is_read() {
        let file = "../tests/recorded/0.1.0/agent-proxy.jsonl";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{e}"));
        let hex = text.split("\"content\": \"").nth(1);
        let hex = hex
            .and_then(|rest| rest.split('"').next())
            .unwrap_or_default();
        let digits = hex.as_bytes().as_chunks::<2>().0.iter();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<_>> = digits.map(byte).collect();
        let bytes = bytes.unwrap_or_else(|| panic!("{hex}"));
        let material = decode(&bytes).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(*encode(&material), bytes);
    }

    #[test]
    fn an_unsealed_file_is_refused() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"test", flags).unwrap_or_else(|e| panic!("{e}"));
        assert!(matches!(open(&fd), Err(BadKey::Unsealed { .. })));
        let null = File::open("/dev/null").unwrap_or_else(|e| panic!("{e}"));
        assert!(matches!(open(&null.into()), Err(BadKey::Io(_))));
    }
}

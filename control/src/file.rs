// SPDX-License-Identifier: Apache-2.0
//! Files that are replaced as a whole.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Writes a file so that readers, and a crash, find either the old or the new content.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = OsString::from(path);
    name.push(".new");
    let new = Path::new(&name);
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The mode holds from the first moment, because the file is a new one.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(new, path)?;
    sync_dir(path)
}

/// Only then does the new name outlive a power cut.
fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let path = dir.path().join("f");
        for content in [&b"one"[..], b"two"] {
            let replaced = replace(&path, content, 0o600);
            assert!(replaced.is_ok(), "{replaced:?}");
            assert_eq!(fs::read(&path).unwrap_or_default(), content);
        }
        let mode = fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o777);
        assert!(matches!(mode, Ok(0o600)), "{mode:?}");
        assert_eq!(
            fs::read_dir(dir.path())
                .map(Iterator::count)
                .unwrap_or_default(),
            1
        );
    }
}

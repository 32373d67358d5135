// SPDX-License-Identifier: Apache-2.0
//! Notes for the agent about pods that were let pass while it was away, so that it can enrol them
//! later: where their network namespace is, only the runtime and this plugin know.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
};

use culvert_api::cni::{Attachment, PASSED_DIR};

use crate::config::Settings;

/// Leaves a note, in one step.
pub fn leave(settings: &Settings, attachment: &Attachment) -> io::Result<()> {
    let Some(path) = path(settings, attachment) else {
        return Ok(());
    };
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(&serde_json::to_vec(attachment)?)?;
    fs::rename(temporary, path)
}

/// Takes a note back. One that is gone is fine.
pub fn take_back(settings: &Settings, attachment: &Attachment) -> io::Result<()> {
    let Some(path) = path(settings, attachment) else {
        return Ok(());
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Both names were checked to be fit for a file.
fn path(settings: &Settings, attachment: &Attachment) -> Option<PathBuf> {
    let dir = settings.opt_in_file.as_ref()?.parent()?.join(PASSED_DIR);
    let Attachment {
        network: _,
        container_id,
        ifname,
        netns: _,
        args: _,
    } = attachment;
    Some(dir.join(format!("{container_id}.{ifname}.json")))
}

//! [`Scratch`]: a copy of parts of the project.
//!
//! It is kept, and only what differs is written to it: a build in it does again what has changed and no more,
//! for cargo goes by the time of the last write.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Patch, output};

/// See the file's head.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
    folder: PathBuf,
    parts: &'static [&'static str],
}

impl Scratch {
    /// A copy in `folder` of files and folders of the project at `root`. It is made by [`Self::restore`].
    #[must_use]
    pub fn new(root: &Path, folder: PathBuf, parts: &'static [&'static str]) -> Self {
        Self { root: root.to_owned(), folder, parts }
    }

    /// Where it is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the copy what the project is.
    pub fn restore(&self) -> Result<(), String> {
        self.parts.iter().try_for_each(|part| {
            let (from, to) = (self.root.join(part), self.folder.join(part));
            to.parent().map_or(Ok(()), make)?;
            mirror(&from, &to)
        })
    }

    /// Applies a patch to the copy.
    pub fn apply(&self, patch: &Patch) -> Result<(), String> {
        let mut command = Command::new("patch");
        command.args(["-p1", "--fuzz=0", "--batch", "--forward", "--no-backup-if-mismatch"]);
        command.arg("--input").arg(&patch.path).current_dir(&self.folder);
        output(&mut command).map(drop).map_err(|message| format!("does not apply: {message}"))
    }
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{folder:?}: {error}"))
}

/// Makes `to` a copy of `from`, a file or a folder.
fn mirror(from: &Path, to: &Path) -> Result<(), String> {
    if !from.is_dir() {
        return bring(from, to);
    }
    make(to)?;
    let names = names(from)?;
    names.iter().try_for_each(|name| mirror(&from.join(name), &to.join(name)))?;
    for left_over in self::names(to)?.difference(&names) {
        let path = to.join(left_over);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| format!("{path:?}: {error}"))?;
    }
    Ok(())
}

fn names(folder: &Path) -> Result<BTreeSet<OsString>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{folder:?}: {error}"))?;
    Ok(entries.flatten().map(|entry| entry.file_name()).collect())
}

fn bring(from: &Path, to: &Path) -> Result<(), String> {
    let new = fs::read(from).map_err(|error| format!("{from:?}: {error}"))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).map_err(|error| format!("{to:?}: {error}"))
}

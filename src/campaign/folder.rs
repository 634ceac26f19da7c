//! The folder of a campaign: who may work in it, and files that are there whole or not at all.
//!
//! A file is written under another name, forced to the disk, and renamed. So whatever happens, a kill or
//! a full disk, readers find the file from before or the new one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock};

/// A file or folder that cannot be read or written, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct FileError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// Names the file in an error.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |error| FileError { path, error }
}

/// Name of the file that whoever works in a folder holds a lock on.
const LOCK: &str = "lock";

/// A folder that this process alone works in, as long as this lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The lock goes with the process, and is not inherited by the children that engines start.
    _lock: File,
}

impl Folder {
    /// The folder at `path`, made if it is not there; `None` if another process works in it.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, FileError> {
        fs::create_dir_all(path).map_err(at(path))?;
        let file = path.join(LOCK);
        let lock = File::options().create(true).append(true).open(&file).map_err(at(&file))?;
        match fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path: path.to_owned(), _lock: lock })),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(None),
            Err(error) => Err(at(&file)(error.into())),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one of its files.
    pub(super) fn write(&self, name: &str, contents: &[u8]) -> Result<(), FileError> {
        let (path, partial) = (self.path.join(name), self.path.join(format!("{name}.partial")));
        let written = write_and_rename(&partial, &path, contents);
        if written.is_err() {
            // It may be what fills the disk; that it cannot be removed either is no news.
            let _ = fs::remove_file(&partial);
        }
        written.map_err(at(&path))?;
        // The new name has to reach the disk too.
        let folder = File::open(&self.path).and_then(|folder| folder.sync_all());
        folder.map_err(at(&self.path))
    }
}

fn write_and_rename(partial: &Path, path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = File::create(partial)?;
    file.write_all(contents)?;
    // The bytes come before the name: else a crash of the host could leave the name of an empty file.
    file.sync_all()?;
    fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_full_leaves_what_was_there() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::open(temporary.path()).unwrap().unwrap();
        folder.write("file", b"before").unwrap();
        let partial = temporary.path().join("file.partial");
        std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
        let error = folder.write("file", &[0; 100_000]).unwrap_err();
        assert_eq!(error.error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with(&*temporary.path().join("file").to_string_lossy()));
        assert_eq!(fs::read(temporary.path().join("file")).unwrap(), b"before");
        assert!(!partial.exists());
        folder.write("file", b"after").unwrap();
        assert_eq!(fs::read(temporary.path().join("file")).unwrap(), b"after");
    }
}

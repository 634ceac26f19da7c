//! Anonymous files that several processes map.

use std::fs::File;
use std::io;

use rustix::fs::MemfdFlags;

/// A new empty anonymous file, closed when a program is executed. `name` shows in `/proc`.
pub(crate) fn memfd(name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

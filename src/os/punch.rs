//! Giving back parts of a file.

use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;

/// Gives `size` bytes of `file` from `offset` on back to the system. They read as zeros from then on,
/// in every mapping too.
pub(crate) fn punch_hole(file: &File, offset: u64, size: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, offset, size))?;
    Ok(())
}

//! Guest memory: an [`AddressSpace`] is a window on the host's MMU, in which translated code
//! reaches guest memory as `gs:[address]` with GS base at [`AddressSpace::window_start`].
//!
//! The books (`books.rs`) say what is mapped where; the host's page protections follow them:
//!
//! | guest | host |
//! |---|---|
//! | not mapped, `---` | no access |
//! | `r--`, `r-x` | read |
//! | `rw-`, `rwx` | read and write; read only while the page is *watched* or *clean* |
//! | any, *trapped* (`trap.rs`) | no access |
//!
//! A page is *watched* (`watch.rs`) while there is code translated from it, and *clean*
//! (`snapshot.rs`) while a snapshot is alive that has not yet saved its bytes. The host never
//! grants more than this table. Of write access it may grant less; the first write then faults, and
//! [`AddressSpace::write_fault`] puts it right. So failures halfway need no undoing where they
//! only leave writable pages read-only.
//!
//! Mappings above the window exist in the books alone and are reached by
//! [`AddressSpace::read`] and [`AddressSpace::write`].
//!
//! Nothing here locks: the owner wraps an address space in a mutex. The guest writes to its window
//! from outside Rust's view at any time; what must not race with it says so.

mod access;
mod alias_index;
mod backing;
mod books;
mod differences;
mod error;
mod host;
mod page;
mod pool;
mod run_set;
mod show;
mod snapshot;
mod space;
mod trap;
#[cfg(test)]
mod twin;
mod watch;

pub use backing::Backing;
pub use books::Mapping;
pub use error::{AccessError, MapError};
pub use host::GUARD_BYTES;
pub use page::PageId;
pub use snapshot::{Restored, Snapshot};
pub use space::AddressSpace;
pub use watch::WriteFault;

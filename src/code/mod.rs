//! The code cache: host code made from guest code, kept in *translation regions*.
//!
//! A region is a span of guest pages with code of its own in chunks of one arena. Inside a region,
//! blocks are chained by direct jumps, which nobody ever unpicks: where the guest code of a span
//! changes, its region goes as a whole. Between regions, control passes through each vCPU's jump
//! cache. `CodeCache` is the table of regions and all that is done to them; `Arena` is the host
//! memory, written through one mapping and executed through another.

mod arena;
mod cache;
mod chunks;
mod epoch;
mod figures;
pub(crate) mod gate;
mod index;
mod limbo;
mod region;
mod retire;
mod store;
pub(crate) mod sync;
mod table;
#[cfg(test)]
mod twin;

pub(crate) use arena::{Arena, CHUNK_BYTES};
pub(crate) use cache::{CodeCache, Full, Lookups};
pub(crate) use epoch::{Epoch, Participant, Pinned};
pub use figures::Figures;
pub(crate) use region::{Key, RegionId, Source, Wanted};

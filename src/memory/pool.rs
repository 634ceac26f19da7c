//! [`Pool`]: where the private memory of an address space comes from, so that a mapping of it costs
//! no file of its own.
//!
//! The pool grows by chunks, sparse files each as large as all before it, and hands out runs of
//! pages, which are zeros. What comes back is given back to the host at once, which makes it zeros.

use std::collections::BTreeMap;

use super::backing::Backing;
use super::error::MapError;
use super::page::PageRun;
use super::run_set::RunSet;
use crate::guest::PAGE_SIZE;
use crate::os;

/// Size of the first chunk.
const LEAST_CHUNK: u64 = 64 << 20;
/// Size beyond which chunks grow only where a single mapping needs it.
const MOST_CHUNK: u64 = 64 << 30;

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Pool {
    /// By number.
    chunks: BTreeMap<u64, Backing>,
    /// Pages that nobody has. All of them are zeros.
    free: RunSet,
}

impl Pool {
    /// `size` bytes of zeros: the chunk and where in it.
    pub(super) fn take(&mut self, size: u64) -> Result<(Backing, u64), MapError> {
        let count = size / PAGE_SIZE;
        if let Some(run) = self.free.take(count) {
            return Ok((self.chunks[&run.first.backing].clone(), run.first.offset()));
        }
        let chunk = self.grow(size)?;
        let left = PageRun { first: chunk.page(size), count: chunk.pages().count - count };
        if left.count > 0 {
            self.free.insert(left);
        }
        Ok((chunk, 0))
    }

    /// Whether the backing of this number is one of the pool's.
    pub(super) fn owns(&self, backing: u64) -> bool {
        self.chunks.contains_key(&backing)
    }

    /// Takes back pages that nobody maps any more.
    pub(super) fn give(&mut self, run: PageRun) {
        let chunk = &self.chunks[&run.first.backing];
        let size = run.count * PAGE_SIZE;
        if let Err(error) = os::punch_hole(chunk.file(), run.first.offset(), size) {
            // Never handed out again, since they are not known to be zeros.
            tracing::warn!(%error, size, "memory of a guest could not be freed");
            return;
        }
        let whole = chunk.pages();
        if self.free.insert(run) == whole && self.chunks.len() > 1 {
            self.free.remove(whole);
            self.chunks.remove(&run.first.backing);
        }
    }

    /// A new chunk that has at least `size` bytes.
    fn grow(&mut self, size: u64) -> Result<Backing, MapError> {
        let total = self.chunks.values().map(Backing::size).sum::<u64>();
        let comfortable = total.clamp(LEAST_CHUNK, MOST_CHUNK).max(size);
        let chunk = Backing::new("tregion-memory", comfortable)
            .or_else(|_| Backing::new("tregion-memory", size))?;
        self.chunks.insert(chunk.number(), chunk.clone());
        Ok(chunk)
    }
}

//! [`Chunks`]: which chunks of code memory are free.
//!
//! A chunk that comes back is *stale*: no vCPU is in it, but a core may have fetched its bytes ahead.
//! Before any stale chunk is used again, every core that runs a thread of this process serialises
//! ([`Serialise`]), once for all chunks that are stale then (I5). That costs microseconds, so chunks
//! never used are taken until some are stale.

/// Names a chunk: its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkId(pub(crate) u32);

/// Makes every core forget instructions that it has fetched.
pub(crate) trait Serialise {
    /// Returns when they all have.
    fn serialise(&self);
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Chunks<S> {
    serialise: S,
    count: u32,
    /// Chunks never used begin here.
    fresh: u32,
    /// To be taken again, the last given first taken, since it is still in the caches.
    free: Vec<ChunkId>,
    stale: Vec<ChunkId>,
    /// How many are stale before chunks never used are left alone.
    batch: usize,
}

/// At most so many; what they hold stays in a core's caches.
const MOST_BATCH: u32 = 16;
/// Of an arena, at most one part in so many.
const PARTS: u32 = 64;

/// How many chunks there are of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) used: usize,
    pub(crate) stale: usize,
    pub(crate) free: usize,
}

impl<S: Serialise> Chunks<S> {
    /// `count` chunks, of which the first `taken` are in use for ever.
    pub(crate) fn new(serialise: S, count: u32, taken: u32) -> Self {
        let batch = (count / PARTS).clamp(1, MOST_BATCH) as usize;
        Self { serialise, count, fresh: taken, free: Vec::new(), stale: Vec::new(), batch }
    }

    /// A chunk that nobody uses, if there is one.
    pub(crate) fn take(&mut self) -> Option<ChunkId> {
        if let Some(chunk) = self.free.pop() {
            return Some(chunk);
        }
        if self.stale.len() < self.batch {
            let chunk = self.fresh();
            if chunk.is_some() {
                return chunk;
            }
        }
        if !self.stale.is_empty() {
            self.serialise.serialise();
            self.free.append(&mut self.stale);
            return self.free.pop();
        }
        self.fresh()
    }

    fn fresh(&mut self) -> Option<ChunkId> {
        let chunk = (self.fresh < self.count).then_some(ChunkId(self.fresh))?;
        self.fresh += 1;
        Some(chunk)
    }

    /// Gives a chunk back that no vCPU can be in.
    pub(crate) fn give_back(&mut self, chunk: ChunkId) {
        self.stale.push(chunk);
    }

    pub(crate) fn census(&self) -> Census {
        let never = (self.count - self.fresh) as usize;
        let (free, stale) = (self.free.len() + never, self.stale.len());
        Census { used: self.count as usize - free - stale, stale, free }
    }
}

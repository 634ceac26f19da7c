//! [`Region`]: a span of guest pages and the blocks translated from it.

use rustc_hash::FxHashMap;

use super::chunks::ChunkId;
use super::index::{Index, Tagged};
use super::store::{Store, Stored};
use super::sync::Arc;
use super::table::Live;
use crate::guest::GuestAddress;
use crate::translate::TranslatedBlock;

/// What names a block: its address, and how it was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Guest address of its first instruction.
    pub(crate) pc: GuestAddress,
    /// It takes its instructions off the budget.
    pub(crate) counted: bool,
}

impl Key {
    /// As lookups see it: a vCPU in long mode, whose blocks count or do not.
    pub(crate) fn tagged(self) -> Tagged {
        Tagged { pc: self.pc.0, tag: 1 | u32::from(self.counted) << 1 }
    }
}

/// A block in its place.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) key: Key,
    /// Offset of its code in the arena.
    pub(crate) offset: usize,
    /// It compares its source before it runs.
    pub(crate) checked: bool,
    stored: Stored,
    /// The one made before it with the same key.
    previous: Option<u32>,
}

/// What a block was translated from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source<'a> {
    /// Bytes of guest code; none, if it is not to be used again where the same is found.
    pub(crate) bytes: &'a [u8],
    /// It compares them before it runs.
    pub(crate) checked: bool,
}

/// What block is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// It was made from what these begin with.
    pub(crate) bytes: &'a [u8],
    /// It compares them before it runs.
    pub(crate) checked: bool,
    /// It goes on behind branches where it may.
    pub(crate) again: bool,
}

impl Source<'_> {
    /// Whether a block translated from this was made from what is wanted.
    fn is(self, wanted: Wanted<'_>) -> bool {
        let Self { bytes, checked } = self;
        checked == wanted.checked && !bytes.is_empty() && wanted.bytes.starts_with(bytes)
    }
}

/// Names a region. Numbers are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RegionId(pub(crate) u64);

/// Places for blocks that a region begins with.
const FIRST_PLACES: usize = 16;

/// Blocks for which an empty region keeps memory.
const MOST_KEPT: usize = 1 << 9;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Region {
    /// First and last guest address.
    pub(crate) span: (GuestAddress, GuestAddress),
    /// What lookups see: the present block of each key, by its host address.
    pub(crate) live: Arc<Live<u64>>,
    /// Pages that have a block, and so lead here.
    pub(crate) pages: Vec<u64>,
    /// No lookup finds it; a vCPU may still be in it.
    pub(crate) retired: bool,
    /// In how many lists of former regions it is.
    pub(crate) kept: usize,
    /// Its blocks in order of their making, …
    pub(crate) blocks: Vec<Block>,
    /// … what is kept of them, …
    store: Store,
    /// … the last of each key and how many there are, …
    pub(crate) versions: FxHashMap<Key, (u32, usize)>,
    /// … and for each chunk, the number of its first block.
    pub(crate) chunks: Vec<(ChunkId, u32)>,
    /// Bytes used of the last chunk.
    pub(crate) fill: usize,
    /// Pages outside the span that blocks reach into.
    pub(crate) straddled: Vec<u64>,
}

impl Region {
    pub(crate) fn new(span: (GuestAddress, GuestAddress)) -> Self {
        Self {
            span,
            live: Arc::new(Live::new(Index::new(FIRST_PLACES))),
            pages: Vec::new(),
            retired: false,
            kept: 0,
            blocks: Vec::new(),
            store: Store::default(),
            versions: FxHashMap::default(),
            chunks: Vec::new(),
            fill: 0,
            straddled: Vec::new(),
        }
    }

    /// An empty one, with no span yet, in the memory of one that nobody needs any more, as far as that is
    /// little.
    pub(crate) fn emptied(mut self) -> Self {
        self.pages.clear();
        self.blocks.clear();
        self.blocks.shrink_to(MOST_KEPT);
        self.store.clear();
        self.versions.clear();
        self.versions.shrink_to(MOST_KEPT);
        self.chunks.clear();
        self.straddled.clear();
        Self {
            pages: self.pages,
            blocks: self.blocks,
            store: self.store,
            versions: self.versions,
            chunks: self.chunks,
            straddled: self.straddled,
            ..Self::new((GuestAddress(0), GuestAddress(0)))
        }
    }

    /// Adds a block that is at `offset`, in the region's last chunk. Gives its number.
    pub(crate) fn add(
        &mut self,
        key: Key,
        offset: usize,
        translated: &TranslatedBlock<'_>,
        source: Source<'_>,
    ) -> u32 {
        let number = self.blocks.len() as u32;
        let (last, count) = self.versions.entry(key).or_insert((number, 0));
        let previous = (*count > 0).then_some(*last);
        (*last, *count) = (number, *count + 1);
        let stored = self.store.add(translated, source.bytes);
        self.blocks.push(Block { key, offset, checked: source.checked, stored, previous });
        number
    }

    /// A block as it was translated.
    pub(crate) fn translated(&self, block: &Block) -> TranslatedBlock<'_> {
        self.store.block(&block.stored)
    }

    /// What it was translated from.
    pub(crate) fn source(&self, block: &Block) -> Source<'_> {
        Source { bytes: self.store.source(&block.stored), checked: block.checked }
    }

    /// The numbers of the blocks of a key, the last one first.
    pub(crate) fn versions(&self, key: Key) -> impl Iterator<Item = u32> {
        let last = self.versions.get(&key).map(|(last, _)| *last);
        std::iter::successors(last, |number| self.blocks[*number as usize].previous)
    }

    /// What the blocks of a key that compare their source were made from.
    pub(crate) fn sources(&self, key: Key) -> impl Iterator<Item = &[u8]> {
        let sources = self.versions(key).map(|number| self.source(&self.blocks[number as usize]));
        sources.filter(|source| source.checked).map(|source| source.bytes)
    }

    /// A block of a key as it is wanted.
    pub(crate) fn version(&self, key: Key, wanted: Wanted<'_>) -> Option<u32> {
        self.versions(key).find(|number| {
            let block = &self.blocks[*number as usize];
            self.source(block).is(wanted) && !(wanted.again && self.translated(block).ends_early)
        })
    }

    /// The block whose code is at `offset` of the arena, which lies in the chunk of this number.
    pub(crate) fn block_at(&self, chunk: usize, offset: usize) -> Option<&Block> {
        let (_, first) = *self.chunks.get(chunk)?;
        let next = self.chunks.get(chunk + 1).map_or(self.blocks.len() as u32, |(_, first)| *first);
        let blocks = &self.blocks[first as usize..next as usize];
        let after = blocks.partition_point(|block| block.offset <= offset);
        let block = &blocks[after.checked_sub(1)?];
        (offset < block.offset + block.stored.code_bytes()).then_some(block)
    }
}

//! [`Region`]: a span of guest pages and the blocks translated from it.

use rustc_hash::FxHashMap;

use super::chunks::ChunkId;
use super::index::{Index, Tagged};
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
    /// As it was translated, without what its place in the arena has changed in its code.
    pub(crate) translated: Arc<TranslatedBlock>,
    /// What it was translated from, if it may be used again where the same is found.
    pub(crate) source: Option<Source>,
    /// The one made before it with the same key.
    pub(crate) previous: Option<u32>,
}

/// What a block was translated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Bytes of guest code.
    pub(crate) bytes: Box<[u8]>,
    /// It compares them before it runs.
    pub(crate) checked: bool,
}

impl Source {
    /// Whether a block translated from this is one for these bytes, of which there may be more.
    pub(crate) fn is_in(&self, bytes: &[u8], checked: bool) -> bool {
        self.checked == checked && !self.bytes.is_empty() && bytes.starts_with(&self.bytes)
    }
}

/// Names a region. Numbers are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RegionId(pub(crate) u64);

/// Places for blocks that a region begins with.
const FIRST_PLACES: usize = 16;

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
    /// … the last of each key and how many there are, …
    pub(crate) versions: FxHashMap<Key, (u32, usize)>,
    /// … and for each chunk, the offsets and numbers of its blocks, in order.
    pub(crate) chunks: Vec<(ChunkId, Vec<(usize, u32)>)>,
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
            versions: FxHashMap::default(),
            chunks: Vec::new(),
            fill: 0,
            straddled: Vec::new(),
        }
    }

    /// Adds a block in the region's last chunk. Gives its number.
    pub(crate) fn add(&mut self, block: Block) -> u32 {
        let number = self.blocks.len() as u32;
        let (last, count) = self.versions.entry(block.key).or_insert((number, 0));
        let previous = (*count > 0).then_some(*last);
        (*last, *count) = (number, *count + 1);
        let (_, blocks) = self.chunks.last_mut().expect("a block lies in a chunk");
        blocks.push((block.offset, number));
        self.blocks.push(Block { previous, ..block });
        number
    }

    /// The numbers of the blocks of a key, the last one first.
    pub(crate) fn versions(&self, key: Key) -> impl Iterator<Item = u32> {
        let last = self.versions.get(&key).map(|(last, _)| *last);
        std::iter::successors(last, |number| self.blocks[*number as usize].previous)
    }

    /// A block of a key for which `is_it` is true, the last one first.
    pub(crate) fn version(&self, key: Key, is_it: impl Fn(&Block) -> bool) -> Option<u32> {
        self.versions(key).find(|number| is_it(&self.blocks[*number as usize]))
    }

    /// The block whose code is at `offset` of the arena, which lies in the chunk of this number.
    pub(crate) fn block_at(&self, chunk: usize, offset: usize) -> Option<&Block> {
        let (_, blocks) = self.chunks.get(chunk)?;
        let after = blocks.partition_point(|&(start, _)| start <= offset);
        let (_, number) = blocks[after.checked_sub(1)?];
        let block = &self.blocks[number as usize];
        (offset < block.offset + block.translated.code.len()).then_some(block)
    }
}

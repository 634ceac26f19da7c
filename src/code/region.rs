//! [`Region`]: a span of guest pages and the blocks translated from it.

use std::collections::HashMap;

use super::arena::ChunkId;
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

/// A block in its place.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) key: Key,
    /// Offset of its code in the arena.
    pub(crate) offset: usize,
    /// Everything but the code, which is in the arena.
    pub(crate) translated: TranslatedBlock,
    /// Bytes of its code.
    pub(crate) length: usize,
}

/// Names a region. Numbers are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RegionId(pub(crate) u64);

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Region {
    /// First and last guest address.
    pub(crate) span: (GuestAddress, GuestAddress),
    /// Its blocks in order of their making, …
    pub(crate) blocks: Vec<Block>,
    /// … the present one of each key, …
    pub(crate) index: HashMap<Key, u32>,
    /// … and for each chunk, its blocks by offset.
    pub(crate) chunks: Vec<(ChunkId, Vec<u32>)>,
    /// Bytes used of the last chunk.
    pub(crate) fill: usize,
    /// Pages outside the span that blocks reach into.
    pub(crate) straddled: Vec<u64>,
}

impl Region {
    pub(crate) fn new(span: (GuestAddress, GuestAddress)) -> Self {
        Self {
            span,
            blocks: Vec::new(),
            index: HashMap::new(),
            chunks: Vec::new(),
            fill: 0,
            straddled: Vec::new(),
        }
    }

    /// The block with this key.
    pub(crate) fn find(&self, key: Key) -> Option<&Block> {
        self.index.get(&key).map(|&index| &self.blocks[index as usize])
    }

    /// The block whose code is at `offset` of the arena, which lies in `chunk`.
    pub(crate) fn block_at(&self, chunk: ChunkId, offset: usize) -> Option<&Block> {
        let (_, blocks) = self.chunks.iter().find(|(id, _)| *id == chunk)?;
        let after = blocks.partition_point(|&index| self.blocks[index as usize].offset <= offset);
        let block = &self.blocks[blocks[after.checked_sub(1)?] as usize];
        (offset < block.offset + block.length).then_some(block)
    }
}

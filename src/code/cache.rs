//! [`CodeCache`]: the table of regions. Finds the translation of a guest address and the guest code of
//! a host address, puts translated blocks in place, chains them, and retires regions.

use std::collections::HashMap;

use super::arena::{Arena, CHUNK_BYTES};
use super::region::{Block, Key, Region, RegionId};
use crate::guest::{GuestAddress, PAGE_SIZE};
use crate::translate::{CODE_ALIGNMENT, Stub, TranslatedBlock};

/// See the file's head.
#[derive(Debug)]
pub(crate) struct CodeCache {
    arena: Arena,
    /// Offset in the arena of each stub.
    stubs: [u32; Stub::ALL.len()],
    regions: HashMap<RegionId, Region>,
    /// By number of a guest page: the region that it lies in, …
    table: HashMap<u64, RegionId>,
    /// … and those whose blocks reach into it from another.
    straddling: HashMap<u64, Vec<RegionId>>,
    /// By chunk: whose it is.
    owners: Vec<Option<RegionId>>,
    next: u64,
    figures: Figures,
}

/// What the code cache has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Blocks translated.
    pub translations: u64,
    /// Regions retired.
    pub regions_retired: u64,
    /// Direct jumps pointed at their targets.
    pub chained: u64,
    /// Guest instructions translated.
    pub instructions: u64,
    /// Bytes of guest code translated, and of host code made from them.
    pub guest_bytes: u64,
    /// See [`Self::guest_bytes`].
    pub host_bytes: u64,
    /// Bytes of code memory in use …
    pub used_bytes: u64,
    /// … and free.
    pub free_bytes: u64,
}

/// A host address that is in a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located<'a> {
    pub(crate) block: &'a Block,
    /// Offset from the block's first byte of code.
    pub(crate) offset: u32,
}

/// The arena has no chunk left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl CodeCache {
    /// A cache whose arena begins with code that has the stubs at these offsets.
    pub(crate) fn new(arena: Arena, stubs: [u32; Stub::ALL.len()]) -> Self {
        Self {
            arena,
            stubs,
            regions: HashMap::new(),
            table: HashMap::new(),
            straddling: HashMap::new(),
            owners: Vec::new(),
            next: 0,
            figures: Figures::default(),
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        let (used, free) = self.arena.chunks();
        let bytes = |chunks: usize| (chunks * CHUNK_BYTES) as u64;
        Figures { used_bytes: bytes(used), free_bytes: bytes(free), ..self.figures }
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn arena_mut(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// Whether there is no region.
    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Host address of a stub.
    pub(crate) fn stub(&self, stub: Stub) -> u64 {
        self.arena.address(self.stubs[stub as usize] as usize)
    }

    /// Host address of the translation with this key.
    pub(crate) fn find(&self, key: Key) -> Option<u64> {
        let region = self.regions.get(self.table.get(&page(key.pc))?)?;
        Some(self.arena.address(region.find(key)?.offset))
    }

    /// The region that `pc` lies in.
    pub(crate) fn region_of(&self, pc: GuestAddress) -> Option<RegionId> {
        self.table.get(&page(pc)).copied()
    }

    /// The span of a region.
    pub(crate) fn span(&self, region: RegionId) -> Option<(GuestAddress, GuestAddress)> {
        self.regions.get(&region).map(|region| region.span)
    }

    /// A new, empty region for a span of pages, none of which is in another.
    pub(crate) fn create(&mut self, span: (GuestAddress, GuestAddress)) -> RegionId {
        let id = RegionId(self.next);
        self.next += 1;
        for page in page(span.0)..=page(span.1) {
            let before = self.table.insert(page, id);
            debug_assert!(before.is_none(), "a page lies in one region");
        }
        self.regions.insert(id, Region::new(span));
        id
    }

    /// Puts a block in place and makes it the one with this key. Gives its host address.
    pub(crate) fn insert(
        &mut self,
        id: RegionId,
        key: Key,
        mut translated: TranslatedBlock,
    ) -> Result<u64, Full> {
        let mut code = std::mem::take(&mut translated.code);
        let offset = self.allocate(id, code.len())?;
        self.relocate(offset, &translated, &mut code);
        self.arena.write(offset, &code);
        self.figures.translations += 1;
        self.figures.instructions += u64::from(translated.instructions);
        self.figures.guest_bytes += u64::from(translated.guest_bytes);
        self.figures.host_bytes += code.len() as u64;
        self.note_straddling(id, key.pc, translated.guest_bytes);
        let region = self.regions.get_mut(&id).expect("the caller has just found it");
        let number = region.blocks.len() as u32;
        region.blocks.push(Block { key, offset, translated, length: code.len() });
        region.index.insert(key, number);
        let (_, blocks) = region.chunks.last_mut().expect("space was just taken from it");
        blocks.push(number);
        Ok(self.arena.address(offset))
    }

    /// Resolves the calls of stubs in `code`, which goes to `offset` of the arena.
    pub(crate) fn relocate(&self, offset: usize, block: &TranslatedBlock, code: &mut [u8]) {
        for relocation in &block.relocations {
            let place = relocation.offset as usize;
            let stub = i64::from(self.stubs[relocation.stub as usize]);
            let distance = stub - (offset + place + 4) as i64;
            code[place..place + 4].copy_from_slice(&(distance as i32).to_le_bytes());
        }
    }

    /// Space in a region's last chunk, or in a new one.
    fn allocate(&mut self, id: RegionId, length: usize) -> Result<usize, Full> {
        assert!(length <= CHUNK_BYTES, "a block fits into a chunk");
        let region = self.regions.get_mut(&id).expect("the caller has just found it");
        if region.chunks.is_empty() || region.fill + length > CHUNK_BYTES {
            let chunk = self.arena.take().ok_or(Full)?;
            region.chunks.push((chunk, Vec::new()));
            region.fill = 0;
            let index = chunk.0 as usize;
            self.owners.resize(self.owners.len().max(index + 1), None);
            self.owners[index] = Some(id);
        }
        let (chunk, _) = region.chunks.last().expect("there is one now");
        let offset = chunk.start() + region.fill;
        region.fill = (region.fill + length).next_multiple_of(CODE_ALIGNMENT);
        Ok(offset)
    }

    fn note_straddling(&mut self, id: RegionId, pc: GuestAddress, bytes: u32) {
        let region = self.regions.get_mut(&id).expect("the caller has just found it");
        let last = page(pc.wrapping_add(u64::from(bytes.max(1)) - 1));
        if last > page(region.span.1) && !region.straddled.contains(&last) {
            region.straddled.push(last);
            self.straddling.entry(last).or_default().push(id);
        }
    }

    /// The block that a host address lies in.
    pub(crate) fn locate(&self, address: u64) -> Option<Located<'_>> {
        let offset = self.arena.offset(address)?;
        let chunk = super::arena::ChunkId((offset / CHUNK_BYTES) as u32);
        let region = (*self.owners.get(chunk.0 as usize)?)?;
        let block = self.regions.get(&region)?.block_at(chunk, offset)?;
        Some(Located { block, offset: (offset - block.offset) as u32 })
    }

    /// Points a direct jump of the block at `from` at `target`, which is in the same region.
    pub(crate) fn chain(&mut self, from: u64, patch: u32, target: u64) {
        let place = self.arena.offset(from).expect("blocks are in the arena") + patch as usize;
        let target = self.arena.offset(target).expect("blocks are in the arena");
        let distance = target as i64 - (place + 4) as i64;
        self.arena.patch(place, distance as i32 as u32);
        self.figures.chained += 1;
    }

    /// Takes a block out of the index, so that no lookup finds it. Chained jumps still do.
    pub(crate) fn forget(&mut self, key: Key) {
        if let Some(region) = self.region_of(key.pc).and_then(|id| self.regions.get_mut(&id)) {
            region.index.remove(&key);
        }
    }

    /// Retires every region that has to do with a guest page; whether there was one.
    pub(crate) fn retire_page(&mut self, address: GuestAddress) -> bool {
        let own = self.table.get(&page(address)).copied();
        let others = self.straddling.get(&page(address)).cloned().unwrap_or_default();
        let mut any = false;
        for id in own.into_iter().chain(others) {
            any |= self.retire(id);
        }
        any
    }

    /// Retires every region.
    pub(crate) fn retire_all(&mut self) {
        let all: Vec<RegionId> = self.regions.keys().copied().collect();
        for id in all {
            self.retire(id);
        }
    }

    /// Takes a region out of the table and gives its memory back. No vCPU is in it.
    fn retire(&mut self, id: RegionId) -> bool {
        let Some(region) = self.regions.remove(&id) else { return false };
        for page in page(region.span.0)..=page(region.span.1) {
            self.table.remove(&page);
        }
        for page in &region.straddled {
            if let Some(ids) = self.straddling.get_mut(page) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.straddling.remove(page);
                }
            }
        }
        for (chunk, _) in region.chunks {
            self.owners[chunk.0 as usize] = None;
            self.arena.give_back(chunk);
        }
        self.figures.regions_retired += 1;
        true
    }
}

fn page(address: GuestAddress) -> u64 {
    address.0 / PAGE_SIZE
}

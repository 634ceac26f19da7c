//! [`CodeCache`]: all regions. Finds the translation of a guest address and the guest code of a host
//! address, puts translated blocks in place, chains them, and retires regions.
//!
//! It is changed by one thread at a time. Any other may look up meanwhile, in the [`Lookups`] that it
//! shares, and run what it has found. So a region goes in steps: retired, it is out of the lookups, and
//! each vCPU is asked to come out; once no vCPU can be in it or come back to what it knows of it
//! ([`Limbo`]), it and its code memory go.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::arena::{Arena, CHUNK_BYTES};
use super::epoch::{Epoch, Participant};
use super::figures::Figures;
use super::limbo::Limbo;
use super::region::{Block, Key, Region, RegionId, Source, Wanted};
use super::sync::{Arc, Guard};
use super::table::Table;
use crate::guest::{GuestAddress, PAGE_SIZE};
use crate::translate::{CODE_ALIGNMENT, ENTRY, Leave, Stub, TranslatedBlock};

/// See the file's head.
#[derive(Debug)]
pub(crate) struct CodeCache {
    pub(super) arena: Arena,
    /// Offset in the arena of each stub.
    stubs: [u32; Stub::ALL.len()],
    pub(super) lookups: Arc<Lookups>,
    epoch: Epoch,
    /// Whoever changes the cache, in the epoch.
    pub(super) changer: Participant,
    /// Those that are retired too, until they go.
    pub(super) regions: FxHashMap<RegionId, Region>,
    pub(super) limbo: Limbo<RegionId>,
    /// By number of a guest page: the region that it lies in, …
    pub(super) table: FxHashMap<u64, RegionId>,
    /// … and those whose blocks reach into it from another.
    pub(super) straddling: FxHashMap<u64, Vec<RegionId>>,
    /// By number of a guest page: retired regions that it lay in, the last one last.
    pub(super) former: FxHashMap<u64, VecDeque<RegionId>>,
    /// By chunk: whose it is, and which of its chunks.
    pub(super) owners: Vec<Option<(RegionId, usize)>>,
    /// Empty regions, whose memory others are to have.
    pub(super) spare: Vec<Region>,
    next: u64,
    /// How often memory was to be reclaimed.
    pub(super) reclaims: u64,
    pub(super) figures: Figures,
}

/// What any thread may read of a code cache at any time.
#[derive(Debug)]
pub(crate) struct Lookups(pub(super) Table<u64>);

/// Opcodes with a 32-bit displacement.
const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;
/// Blocks that are looked through for jumps to one whose place another takes.
const MOST_REJOINED: usize = 64;

/// Lists of the table; more pages than this share lists.
const BUCKETS: usize = 1 << 12;

impl Lookups {
    /// Host address of the translation with this key. It may be run as long as `guard` lives.
    pub(crate) fn find(&self, key: Key, guard: &Guard) -> Option<u64> {
        self.0.find(page(key.pc), key.tagged(), guard)
    }
}

/// A host address that is in a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located<'a> {
    region: &'a Region,
    pub(crate) block: &'a Block,
    /// Offset from the block's first byte of code.
    pub(crate) offset: u32,
}

impl<'a> Located<'a> {
    /// The block as it was translated.
    pub(crate) fn translated(&self) -> TranslatedBlock<'a> {
        self.region.translated(self.block)
    }

    /// What it was translated from.
    #[cfg(test)]
    pub(crate) fn source(&self) -> Source<'a> {
        self.region.source(self.block)
    }
}

/// The arena has no chunk left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl CodeCache {
    /// A cache whose arena begins with code that has the stubs at these offsets.
    pub(crate) fn new(arena: Arena, stubs: [u32; Stub::ALL.len()]) -> Self {
        let epoch = Epoch::new();
        Self {
            arena,
            stubs,
            lookups: Arc::new(Lookups(Table::new(BUCKETS))),
            changer: epoch.participant(),
            epoch,
            regions: FxHashMap::default(),
            limbo: Limbo::new(),
            table: FxHashMap::default(),
            straddling: FxHashMap::default(),
            former: FxHashMap::default(),
            owners: Vec::new(),
            spare: Vec::new(),
            next: 0,
            reclaims: 0,
            figures: Figures::default(),
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        let census = self.arena.census();
        let bytes = |chunks: usize| (chunks * CHUNK_BYTES) as u64;
        let retired = self.regions.values().filter(|region| region.retired);
        Figures {
            used_bytes: bytes(census.used),
            retired_bytes: bytes(retired.map(|region| region.chunks.len()).sum()),
            free_bytes: bytes(census.free + census.stale),
            ..self.figures
        }
    }

    /// The epoch that other threads pin while they look up and use what they have found.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch.clone()
    }

    /// What other threads look up in.
    pub(crate) fn lookups(&self) -> Arc<Lookups> {
        Arc::clone(&self.lookups)
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Whether there is no region but retired ones.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Host address of a stub.
    pub(crate) fn stub(&self, stub: Stub) -> u64 {
        self.arena.address(self.stubs[stub as usize] as usize)
    }

    /// Host address of the translation with this key.
    pub(crate) fn find(&mut self, key: Key) -> Option<u64> {
        self.lookups.find(key, &self.changer.pin())
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
        let mut region = self.spare.pop().unwrap_or_else(|| Region::new(span));
        region.span = span;
        self.regions.insert(id, region);
        id
    }

    /// Puts a block in place and makes it the one with this key, one that translated code may jump to
    /// or not. Gives its host address.
    pub(crate) fn insert(
        &mut self,
        id: RegionId,
        key: Key,
        translated: &TranslatedBlock<'_>,
        source: Source<'_>,
        jumps: bool,
    ) -> Result<u64, Full> {
        let offset = self.allocate(id, translated.code.len())?;
        self.place(offset, translated);
        self.note_straddling(id, key.pc, translated.guest_bytes);
        let region = self.regions.get_mut(&id).expect("the caller has just found it");
        let number = region.add(key, offset, translated, source);
        Ok(self.publish(id, number, jumps))
    }

    /// Notes that a block was translated, not found.
    pub(crate) fn count(&mut self, block: &TranslatedBlock<'_>) {
        self.figures.translations += 1;
        self.figures.instructions += u64::from(block.instructions);
        self.figures.guest_bytes += u64::from(block.guest_bytes);
        self.figures.host_bytes += block.code.len() as u64;
    }

    /// Makes a block of a region the one with its key, and points its other versions at it, to which
    /// chained jumps may lead, if it is one for `jumps`. From here on other vCPUs run it.
    fn publish(&mut self, id: RegionId, number: u32, jumps: bool) -> u64 {
        let region = self.regions.get_mut(&id).expect("the caller has just found it");
        let (key, offset) =
            (region.blocks[number as usize].key, region.blocks[number as usize].offset);
        for other in region.versions(key).filter(|other| jumps && *other != number) {
            let from = region.blocks[other as usize].offset;
            self.arena.patch_entry(from, transfer(JUMP, from, offset));
        }
        let (address, guard) = (self.arena.address(offset), self.changer.pin());
        if !region.live.index.revive(key.tagged(), address, &guard) {
            region.live.index.insert(key.tagged(), address, &guard);
        }
        if !region.pages.contains(&page(key.pc)) {
            region.pages.push(page(key.pc));
            self.lookups.0.insert(page(key.pc), Arc::clone(&region.live), &guard);
        }
        address
    }

    /// A block for a key that has none, made earlier and as wanted: one of the region's own that
    /// was invalidated, or one of a retired region with the same span, which is copied.
    pub(crate) fn revive(
        &mut self,
        id: RegionId,
        key: Key,
        wanted: Wanted<'_>,
    ) -> Option<Result<u64, Full>> {
        let region = self.regions.get(&id)?;
        if let Some(number) = region.version(key, wanted) {
            let offset = region.blocks[number as usize].offset;
            self.arena.patch_entry(offset, ENTRY);
            self.figures.blocks_revived += 1;
            return Some(Ok(self.publish(id, number, true)));
        }
        if region.versions.contains_key(&key) {
            // Former regions were looked through for the first; what came after was written since.
            return None;
        }
        let former = self.former.get(&page(key.pc))?;
        let (other, number) = former.iter().rev().find_map(|id| {
            let other = self.regions.get(id).filter(|other| other.span == region.span)?;
            Some((*id, other.version(key, wanted)?))
        })?;
        // Out of the list, so that the new one can be changed beside it.
        let other_region = self.regions.remove(&other).expect("it was just found");
        let found = &other_region.blocks[number as usize];
        let (translated, source) = (other_region.translated(found), other_region.source(found));
        let inserted = self.insert(id, key, &translated, source, true);
        self.regions.insert(other, other_region);
        self.figures.blocks_adopted += u64::from(inserted.is_ok());
        Some(inserted)
    }

    /// How many blocks there have been for a key in its region.
    pub(crate) fn versions(&self, id: RegionId, key: Key) -> usize {
        let region = self.regions.get(&id);
        region.and_then(|region| region.versions.get(&key)).map_or(0, |(_, count)| *count)
    }

    /// What the blocks that there have been for a key in its region were translated from, if they compare
    /// it.
    pub(crate) fn earlier(&self, id: RegionId, key: Key) -> impl Iterator<Item = &[u8]> {
        self.regions.get(&id).into_iter().flat_map(move |region| region.sources(key))
    }

    /// Writes a block's code to `offset` of the arena and resolves its calls of stubs.
    fn place(&mut self, offset: usize, block: &TranslatedBlock<'_>) {
        self.arena.write(offset, block.code);
        for relocation in block.relocations {
            let place = offset + relocation.offset as usize;
            let stub = i64::from(self.stubs[relocation.stub as usize]);
            let distance = stub - (place + 4) as i64;
            self.arena.write(place, &(distance as i32).to_le_bytes());
        }
    }

    /// The same for a block at an offset that is nobody else's, for which nothing is noted. Gives its host
    /// address.
    pub(crate) fn place_once(&mut self, offset: usize, block: &TranslatedBlock<'_>) -> u64 {
        assert!(block.code.len() <= CHUNK_BYTES, "one instruction fits into a chunk");
        self.place(offset, block);
        self.arena.address(offset)
    }

    /// Space in a region's last chunk, or in a new one.
    fn allocate(&mut self, id: RegionId, length: usize) -> Result<usize, Full> {
        assert!(length <= CHUNK_BYTES, "a block fits into a chunk");
        let region = self.regions.get_mut(&id).expect("the caller has just found it");
        if region.chunks.is_empty() || region.fill + length > CHUNK_BYTES {
            let chunk = self.arena.take().ok_or(Full)?;
            region.chunks.push((chunk, region.blocks.len() as u32));
            region.fill = 0;
            let index = chunk.0 as usize;
            self.owners.resize(self.owners.len().max(index + 1), None);
            self.owners[index] = Some((id, region.chunks.len() - 1));
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

    /// The block that a host address lies in, of a retired region too.
    pub(crate) fn locate(&self, address: u64) -> Option<Located<'_>> {
        let offset = self.arena.offset(address)?;
        let (region, chunk) = (*self.owners.get(offset / CHUNK_BYTES)?)?;
        let region = self.regions.get(&region)?;
        let block = region.block_at(chunk, offset)?;
        Some(Located { region, block, offset: (offset - block.offset) as u32 })
    }

    /// Points a direct jump of the block at `from` at `target`, if that is in the same region: not if
    /// one of them is retired.
    pub(crate) fn chain(&mut self, from: u64, patch: u32, target: u64) {
        let place = self.arena.offset(from).expect("blocks are in the arena") + patch as usize;
        let target = self.arena.offset(target).expect("blocks are in the arena");
        let owner = |offset: usize| self.owners[offset / CHUNK_BYTES].map(|(region, _)| region);
        if owner(place) != owner(target) {
            return;
        }
        let distance = target as i64 - (place + 4) as i64;
        self.arena.patch(place, distance as i32 as u32);
        self.figures.chained += 1;
    }

    /// Points jumps of blocks of the same region that lead to a block at `from` by its key at the one at `to`
    /// that has come in its place, or each would be followed by another jump; as far as they were made lately.
    pub(crate) fn rejoin(&mut self, key: Key, to: u64) {
        let region = self.region_of(key.pc).and_then(|id| self.regions.get(&id));
        let Some(region) = region else { return };
        let mut jumps = SmallVec::<[(u64, u32); 16]>::new();
        let lately = region.blocks.iter().rev().take(MOST_REJOINED);
        for block in lately.filter(|block| block.key.counted == key.counted) {
            let from = self.arena.address(block.offset);
            jumps.extend(region.translated(block).exits.iter().filter_map(
                |exit| match exit.leave {
                    Leave::Direct { target, patch } if target == key.pc => Some((from, patch)),
                    _ => None,
                },
            ));
        }
        for (from, patch) in jumps {
            self.chain(from, patch, to);
        }
    }

    /// Makes a block one that no lookup finds and no jump passes: one store to its tag, one to its entry.
    /// Whether there was one.
    pub(crate) fn invalidate(&mut self, key: Key) -> bool {
        self.invalidate_at(key.pc, &[key.counted])
    }

    /// The same for those at an address that count or do not, as `counted` says.
    pub(crate) fn invalidate_at(&mut self, pc: GuestAddress, counted: &[bool]) -> bool {
        let region = self.region_of(pc).and_then(|id| self.regions.get(&id));
        let Some(region) = region else { return false };
        let (guard, before) = (self.changer.pin(), self.figures.blocks_invalidated);
        for counted in counted {
            let key = Key { pc, counted: *counted };
            let address = region.live.index.invalidate(key.tagged(), &guard);
            if let Some(offset) = address.and_then(|address| self.arena.offset(address)) {
                let stub = self.stubs[Stub::Changed as usize] as usize;
                self.arena.patch_entry(offset, transfer(CALL, offset, stub));
                self.figures.blocks_invalidated += 1;
            }
        }
        self.figures.blocks_invalidated != before
    }
}

/// A transfer of control from `from` to `to`, both in the arena.
fn transfer(opcode: u8, from: usize, to: usize) -> [u8; 5] {
    let distance = (to as i64 - (from + 5) as i64) as i32;
    let [a, b, c, d] = distance.to_le_bytes();
    [opcode, a, b, c, d]
}

pub(super) fn page(address: GuestAddress) -> u64 {
    address.0 / PAGE_SIZE
}

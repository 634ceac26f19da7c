//! [`Core`]: what the vCPUs of a machine share: memory, code, and what the two owe each other. Every
//! change of memory that code may have been translated from goes through here.

use std::io;

use iced_x86::CpuidFeature;
use smallvec::SmallVec;

use super::code_pages::CodePages;
use super::cpuid::CpuidModel;
use super::hooks::Hooks;
use super::mmio::Device;
use super::signals::Registration;
use super::trampoline::Prelude;
use super::trapped::Sites;
use super::vcpu_memory::{Door, PollCell};
use crate::code::gate::Gates;
use crate::code::sync::Arc;
use crate::code::{Arena, CHUNK_BYTES, CodeCache, Figures, Full, Key, RegionId, Source, Wanted};
use crate::guest::{GuestAddress, GuestRange, HostFeatures, PAGE_SIZE, Permissions};
use crate::memory::{AccessError, AddressSpace, PageId};
use crate::translate::{Extended, Leave, PatchedList, Request, Stub, Translator, patched};

/// Bytes of guest code that one block can be made from: 64 instructions of 15 bytes.
const MOST_SOURCE: usize = 1024;
/// Pages that a region of code that is not writable spans at most.
const MOST_PAGES: u64 = 512;
/// Pages of a range from which on all code is retired, and not page by page.
const MOST_RETIRED: u64 = 1 << 16;
/// Blocks of one key that a region keeps; when there are more, it goes.
const MOST_VERSIONS: usize = 16;

const _: () = assert!(crate::memory::GUARD_BYTES as u64 >= crate::translate::GUARD_BYTES);

/// Where the translation of an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// At this host address.
    At(u64),
    /// There is no code, or none that can be translated.
    Nothing,
    /// Code memory is full: the coldest regions are retired, and once every vCPU has left them there is
    /// room.
    NoRoom,
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) memory: AddressSpace,
    pub(super) cache: CodeCache,
    pub(super) translator: Translator,
    /// Breakpoints and hooks, …
    pub(super) hooks: Hooks,
    /// … and devices.
    pub(super) devices: Vec<Device>,
    /// Where the vCPUs are, and how they are told of what they may not run any more.
    pub(super) gates: Arc<Gates<PollCell>>,
    pub(super) door: Door,
    /// Offset in the arena of code that is executed once.
    pub(super) scratch: usize,
    /// Writes to watched pages.
    pub(super) code_writes: u64,
    /// Instructions that meet traps.
    pub(super) sites: Sites,
    /// How much of the extended state code needs that was translated.
    pub(super) extended: Extended,
    pages: CodePages,
    source: Vec<u8>,
    pub(super) cpuid: CpuidModel,
    host: &'static HostFeatures,
    // Last: faults are looked for in the cache until it is gone.
    _registration: Registration,
}

impl Core {
    /// With so many bytes of code memory.
    pub(super) fn new(memory: AddressSpace, code_bytes: usize) -> io::Result<Self> {
        let prelude = Prelude::new();
        assert!(prelude.code.len() <= CHUNK_BYTES, "the prelude fits into a chunk");
        // The second chunk is for code that is executed once.
        let arena = Arena::new(code_bytes, &prelude.code, 2)?;
        let (range, enter) = (arena.executable_range(), arena.address(prelude.enter));
        let cache = CodeCache::new(arena, prelude.stubs);
        let registration = Registration::new(range, cache.stub(Stub::Fault))?;
        let translator = Translator::new(memory.window_bits());
        Ok(Self {
            memory,
            cache,
            translator,
            hooks: Hooks::default(),
            devices: Vec::new(),
            gates: Arc::new(Gates::new()),
            door: Door { enter, range },
            scratch: CHUNK_BYTES,
            code_writes: 0,
            sites: Sites::default(),
            extended: Extended::Nothing,
            pages: CodePages::default(),
            source: Vec::new(),
            cpuid: CpuidModel::default(),
            host: HostFeatures::of_this_host(),
            _registration: registration,
        })
    }

    /// The translation of `key.pc`, made if there is none.
    pub(super) fn find_or_translate(&mut self, key: Key) -> Found {
        match self.cache.find(key) {
            Some(host) => Found::At(host),
            None => self.translate(key, false),
        }
    }

    /// The same for translated code that is to jump there by itself; by a jump back, control may come there again
    /// and again.
    pub(super) fn find_to_jump(&mut self, key: Key, back: bool) -> Option<u64> {
        if !self.hooks.allow_jump(key.pc) {
            return None;
        }
        match if back { self.find_or_lengthen(key) } else { self.find_or_translate(key) } {
            Found::At(host) => Some(host),
            Found::Nothing | Found::NoRoom => None,
        }
    }

    /// The translation of `key.pc`: a block that ends at the first branch makes place for one that goes on behind
    /// it.
    fn find_or_lengthen(&mut self, key: Key) -> Found {
        let former = self.cache.find(key);
        match former {
            Some(host) if !self.ends_early(host) => return Found::At(host),
            Some(_) => {
                self.cache.invalidate(key);
            }
            None => {}
        }
        let found = self.translate(key, true);
        if let (Some(_), Found::At(host)) = (former, &found) {
            self.cache.rejoin(key, *host);
        }
        found
    }

    fn ends_early(&self, host: u64) -> bool {
        self.cache.locate(host).is_some_and(|located| located.translated().ends_early)
    }

    /// Translates what is to be run `again` and again, or not. Pages are watched before they are read: whoever
    /// writes to them later finds the translation and retires it, so that none is made of old and new bytes.
    fn translate(&mut self, key: Key, again: bool) -> Found {
        let Some(own) = self.memory.page_at(key.pc) else { return Found::Nothing };
        // A vCPU that has not heard of a new hook yet must not make a block of what it stands for.
        if self.hooks.is_breakpoint(key.pc) {
            return Found::Nothing;
        }
        // What only the run loop may pass is as good as not there.
        let most = usize::try_from(self.hooks.room(key.pc)).unwrap_or(usize::MAX).min(MOST_SOURCE);
        let in_page = (PAGE_SIZE - key.pc.0 % PAGE_SIZE) as usize;
        let writable = self.memory.permissions_at(key.pc).is_some_and(Permissions::write);
        let next = self.memory.page_at(key.pc.wrapping_add(in_page as u64));
        let next = next.filter(|_| most > in_page);
        let mut pages = SmallVec::<[PageId; 2]>::from_slice(&[own]);
        // Blocks end with a page that is written; but for an instruction that goes on in the next.
        if !writable {
            pages.extend(next);
        }
        self.cache.reclaim();
        let region = self.cache.region_of(key.pc);
        let crowded = region.is_some_and(|id| self.cache.versions(id, key) >= MOST_VERSIONS);
        if crowded && self.cache.retire_page(key.pc) {
            self.gates.invalidated();
        }
        let region = match region.filter(|_| !crowded) {
            Some(region) => region,
            None => {
                let Some(span) = self.new_span(key.pc) else { return Found::Nothing };
                self.cache.create(span)
            }
        };
        let (block, checked, as_is) = loop {
            let checked = pages.iter().any(|page| self.pages.is_checked(*page));
            // Above the window, or where it is trapped, a block cannot compare its source.
            let beyond = key.pc.0 >= self.memory.window_end();
            let cannot = checked && (beyond || self.traps(key.pc, most));
            if cannot || (!checked && !self.watch(&pages)) {
                return Found::Nothing;
            }
            let most = if pages.len() > 1 { most } else { most.min(in_page) };
            self.source.clear();
            self.memory.fetch(key.pc, most, &mut self.source);
            if self.source.is_empty() {
                return Found::Nothing;
            }
            let Some(span) = self.cache.span(region) else { return Found::Nothing };
            let observed = self.sites.noted(key.pc, self.source.len() as u64);
            // Nothing but the code's bytes decides what the block is.
            let as_is = !self.hooks.on_code && observed.is_empty();
            let wanted = Wanted { bytes: &self.source, checked, again };
            if as_is && let Some(revived) = self.cache.revive(region, key, wanted) {
                return self.found(key, revived);
            }
            let patched = if as_is && checked {
                self.patched_constants(region, key)
            } else {
                PatchedList::new()
            };
            let block = self.translator.block(&Request {
                pc: key.pc,
                code: &self.source,
                span,
                observed: &observed,
                again,
                counted: key.counted,
                checked,
                announced: self.hooks.announced(),
                patched: &patched,
            });
            match next {
                Some(next) if block.truncated && pages.len() == 1 => pages.push(next),
                _ => break (block, checked, as_is),
            }
        };
        if block.extended > self.extended {
            // A jump may lead any vCPU to it: none is to come with less.
            self.extended = block.extended;
            self.gates.invalidated();
            self.gates.wait();
        }
        let kept = if as_is && !block.truncated { block.guest_bytes as usize } else { 0 };
        let source = Source { bytes: &self.source[..kept], checked };
        let jumps = self.hooks.allow_jump(key.pc);
        let inserted = self.cache.insert(region, key, &block, source, jumps);
        if inserted.is_ok() {
            self.cache.count(&block);
        }
        self.found(key, inserted)
    }

    /// The immediates of the source in hand that its block is to read. The search costs as much as a
    /// translation, so it is not made for each version.
    fn patched_constants(&self, region: RegionId, key: Key) -> PatchedList {
        let versions = self.cache.versions(region, key);
        if versions > 1 && versions.is_power_of_two() {
            patched(&self.source, key.pc, self.cache.earlier(region, key))
        } else {
            PatchedList::new()
        }
    }

    /// What came of putting a block in place.
    fn found(&mut self, key: Key, inserted: Result<u64, Full>) -> Found {
        match inserted {
            Ok(address) => {
                self.chain(key, address);
                Found::At(address)
            }
            Err(_full) => {
                if self.cache.retire_cold() {
                    self.gates.invalidated();
                }
                self.cache.hurry();
                Found::NoRoom
            }
        }
    }

    /// Points the direct jumps of a new block at what is translated already, or it would be left at each.
    fn chain(&mut self, key: Key, host: u64) {
        let Some(located) = self.cache.locate(host) else { return };
        let translated = located.translated();
        let jumps: SmallVec<[(GuestAddress, u32, bool); 6]> = translated
            .exits
            .iter()
            .filter_map(|exit| match exit.leave {
                Leave::Direct { target, patch } => {
                    Some((target, patch, translated.leads_back(key.pc, exit)))
                }
                _ => None,
            })
            .collect();
        for (target, patch, back) in jumps {
            if !self.hooks.allow_jump(target) {
                continue;
            }
            let Some(found) = self.cache.find(Key { pc: target, ..key }) else { continue };
            // What a jump back leads to may have to make place when that is taken.
            if !back || !self.ends_early(found) {
                self.cache.chain(host, patch, found);
            }
        }
    }

    /// Has writes to pages reported; whether the host can.
    fn watch(&mut self, pages: &[PageId]) -> bool {
        for page in pages {
            if let Err(error) = self.memory.watch(*page) {
                tracing::warn!("a page of code cannot be watched: {error}");
                return false;
            }
            self.pages.watch(*page);
        }
        true
    }

    /// Has no other vCPU in guest code until the caller gives the lock back: each comes out, and none
    /// goes in again before it has caught up with this, for which it takes the lock.
    pub(super) fn stop_others(&self) {
        if self.gates.count() > 1 {
            self.gates.invalidated();
            self.gates.wait();
        }
    }

    /// What the code cache has done and holds.
    pub(super) fn figures(&mut self) -> Figures {
        self.cache.reclaim();
        Figures {
            invalidations: self.gates.generation(),
            code_writes: self.code_writes,
            checked_pages: self.pages.checked() as u64,
            ..self.cache.figures()
        }
    }

    /// The pages of a new region around `pc`: all of a mapping that cannot be written there, as far as
    /// none has a region or was written all the same; else one page.
    fn new_span(&self, pc: GuestAddress) -> Option<(GuestAddress, GuestAddress)> {
        let mapping = self.memory.find(pc)?;
        let own = pc.0 / PAGE_SIZE;
        let (mut first, mut last) = (own, own);
        let written = |address: GuestAddress| {
            self.memory.page_at(address).is_some_and(|page| self.pages.was_written(page))
        };
        if !mapping.permissions.write() && !written(pc) {
            let free = |page: u64| {
                let address = GuestAddress(page * PAGE_SIZE);
                self.cache.region_of(address).is_none() && !written(address)
            };
            let lowest =
                (mapping.range.start().0 / PAGE_SIZE).max(own.saturating_sub(MOST_PAGES / 2));
            let highest = (mapping.range.last().0 / PAGE_SIZE).min(own + MOST_PAGES / 2);
            while first > lowest && free(first - 1) {
                first -= 1;
            }
            while last < highest && free(last + 1) {
                last += 1;
            }
        }
        Some((GuestAddress(first * PAGE_SIZE), GuestAddress(last * PAGE_SIZE + (PAGE_SIZE - 1))))
    }

    fn pages_of(&self, address: GuestAddress, length: u64) -> SmallVec<[PageId; 2]> {
        let last = address.wrapping_add(length.max(1) - 1).page_start();
        let mut pages = SmallVec::new();
        let mut next = address.page_start();
        loop {
            pages.extend(self.memory.page_at(next));
            if next == last {
                return pages;
            }
            next = next.wrapping_add(PAGE_SIZE);
        }
    }

    /// Code of this page was written, or is about to be: everything translated from it goes, wherever
    /// the page is mapped, and the guest may write to it.
    pub(super) fn code_written(&mut self, page: PageId) {
        self.retire_page(page);
        self.code_writes += 1;
        self.pages.note_write(page);
        self.unwatch(page);
    }

    /// A vCPU that has entered many blocks which check themselves is at the start of this one: if its
    /// page has long been calm, it is watched again.
    pub(super) fn look_for_calm(&mut self, pc: GuestAddress) {
        if let Some(page) = self.memory.page_at(pc).filter(|page| self.pages.is_calm(*page)) {
            self.retire_page(page);
        }
    }

    /// The bytes of this page are others than they were; nobody wrote to it.
    pub(super) fn code_restored(&mut self, page: PageId) {
        if self.pages.has_code(page) {
            self.retire_page(page);
            self.unwatch(page);
        }
    }

    fn unwatch(&mut self, page: PageId) {
        self.pages.unwatch(page);
        self.memory.unwatch(page);
    }

    /// Whether the host has all that an instruction needs.
    pub(super) fn has_all(&self, features: &[CpuidFeature]) -> bool {
        self.host.has_all(features)
    }

    fn retire_page(&mut self, page: PageId) {
        let mut any = false;
        for address in self.memory.addresses_of(page) {
            any |= self.cache.retire_page(address);
        }
        if any {
            self.gates.invalidated();
        }
    }

    /// Retires the code of guest pages, whatever is mapped there.
    pub(super) fn retire_range(&mut self, range: GuestRange) {
        self.retire_between(range.start(), range.last());
    }

    pub(super) fn retire_between(&mut self, first: GuestAddress, last: GuestAddress) {
        if self.cache.is_empty() {
            return;
        }
        if last.0 / PAGE_SIZE - first.0 / PAGE_SIZE > MOST_RETIRED {
            return self.retire_all();
        }
        let mut any = false;
        for page in first.0 / PAGE_SIZE..=last.0 / PAGE_SIZE {
            any |= self.cache.retire_page(GuestAddress(page * PAGE_SIZE));
        }
        if any {
            self.gates.invalidated();
        }
    }

    /// Drops the blocks that start at `address`, for runs with and without a budget; whether there were
    /// any. A vCPU that is in one goes on until its end.
    pub(super) fn invalidate_block(&mut self, address: GuestAddress) -> bool {
        self.cache.invalidate_at(address, &[false, true])
    }

    /// Retires all code and lifts all watches.
    pub(super) fn retire_all(&mut self) {
        self.cache.retire_all();
        self.gates.invalidated();
        for page in self.pages.take_watched() {
            self.memory.unwatch(page);
        }
    }

    /// A block's source bytes have changed.
    pub(super) fn forget_block(&mut self, key: Key) {
        self.cache.invalidate(key);
        for page in self.pages_of(key.pc, MOST_SOURCE as u64) {
            self.pages.note_change(page);
        }
    }

    /// Forgets which pages were written often.
    pub(super) fn forget_writes(&mut self) {
        self.pages.forget_writes();
    }

    /// Writes guest memory for the host or for the guest, whatever the permissions, and retires code
    /// that was translated from it.
    pub(super) fn write(&mut self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        self.memory.write(address, bytes)?;
        if bytes.is_empty() || self.cache.is_empty() {
            return Ok(());
        }
        let pages = self.pages_of(address, bytes.len() as u64);
        for page in &pages {
            if self.memory.is_watched(*page) {
                self.code_written(*page);
            }
        }
        if pages.iter().any(|page| self.pages.is_checked(*page)) {
            pages.iter().for_each(|page| self.pages.note_change(*page));
            // A vCPU may be past the comparison of its block.
            self.gates.invalidated();
        }
        Ok(())
    }
}

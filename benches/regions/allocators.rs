//! Ways to give memory to regions, played through without memory: chunks of one size, size classes, one
//! buffer for each region.

use std::collections::{BTreeMap, HashMap};

/// Bytes of a page, in which size classes are cut and big buffers are counted.
const PAGE: u64 = 4 << 10;
/// Bytes of what is cut into places of one class.
const SLAB: u64 = 32 << 10;
/// Up to this size there are classes.
const BIGGEST_CLASS: u64 = 8 << 10;

/// Names a region.
pub(crate) type Id = u64;

/// Gives memory of an arena to regions and takes it back.
pub(crate) trait Allocator {
    /// Takes memory for a region; whether there is enough.
    fn take(&mut self, id: Id, bytes: u64) -> bool;
    /// Gives it back.
    fn give_back(&mut self, id: Id);
    /// Bytes that are not free.
    fn held(&self) -> u64;
    /// The biggest region that there is room for.
    fn largest(&self) -> u64;
    /// Bytes of the arena up to the highest that was ever taken.
    fn reached(&self) -> u64;
}

/// What this crate does: a region has chunks of one size, which lie anywhere.
pub(crate) struct Chunks {
    chunk: u64,
    free: u64,
    held: HashMap<Id, u64>,
    /// Chunks held, and the most that ever were.
    now: u64,
    most: u64,
}

impl Chunks {
    pub(crate) fn new(arena: u64, chunk: u64) -> Self {
        Self { chunk, free: arena / chunk, held: HashMap::new(), now: 0, most: 0 }
    }
}

impl Allocator for Chunks {
    fn take(&mut self, id: Id, bytes: u64) -> bool {
        let wanted = bytes.div_ceil(self.chunk);
        let fits = wanted <= self.free;
        if fits {
            self.free -= wanted;
            self.now += wanted;
            self.most = self.most.max(self.now);
            self.held.insert(id, wanted);
        }
        fits
    }

    fn give_back(&mut self, id: Id) {
        let given = self.held.remove(&id).unwrap_or(0);
        self.free += given;
        self.now -= given;
    }

    fn held(&self) -> u64 {
        self.now * self.chunk
    }

    fn largest(&self) -> u64 {
        self.free * self.chunk
    }

    fn reached(&self) -> u64 {
        self.most * self.chunk
    }
}

/// One buffer a region, in the first hole that is big enough.
pub(crate) struct FirstFit {
    /// Bytes of holes by their start; no two touch.
    holes: BTreeMap<u64, u64>,
    held: HashMap<Id, (u64, u64)>,
    grain: u64,
    reached: u64,
}

impl FirstFit {
    pub(crate) fn new(arena: u64, grain: u64) -> Self {
        Self { holes: BTreeMap::from([(0, arena)]), held: HashMap::new(), grain, reached: 0 }
    }

    fn hole(&mut self, bytes: u64) -> Option<u64> {
        let (start, size) = self
            .holes
            .iter()
            .find(|(_, size)| **size >= bytes)
            .map(|(start, size)| (*start, *size))?;
        self.holes.remove(&start);
        self.reached = self.reached.max(start + bytes);
        if size > bytes {
            self.holes.insert(start + bytes, size - bytes);
        }
        Some(start)
    }

    fn fill(&mut self, mut start: u64, mut bytes: u64) {
        if let Some(next) = self.holes.remove(&(start + bytes)) {
            bytes += next;
        }
        if let Some((before, size)) = self.holes.range(..start).next_back().map(|(a, b)| (*a, *b))
            && before + size == start
        {
            (start, bytes) = (before, bytes + size);
        }
        self.holes.insert(start, bytes);
    }
}

impl Allocator for FirstFit {
    fn take(&mut self, id: Id, bytes: u64) -> bool {
        let bytes = bytes.next_multiple_of(self.grain);
        let found = self.hole(bytes);
        self.held.extend(found.map(|start| (id, (start, bytes))));
        found.is_some()
    }

    fn give_back(&mut self, id: Id) {
        if let Some((start, bytes)) = self.held.remove(&id) {
            self.fill(start, bytes);
        }
    }

    fn held(&self) -> u64 {
        self.held.values().map(|(_, bytes)| bytes).sum()
    }

    fn largest(&self) -> u64 {
        self.holes.values().copied().max().unwrap_or(0)
    }

    fn reached(&self) -> u64 {
        self.reached
    }
}

/// Four classes to a doubling, cut out of slabs; above them whole pages, first fit.
pub(crate) struct Classes {
    pages: FirstFit,
    /// By start of a slab: the size of its places, and how many are taken.
    slabs: BTreeMap<u64, (u64, u64)>,
    /// By region: the slab of its place.
    small: HashMap<Id, u64>,
}

impl Classes {
    pub(crate) fn new(arena: u64) -> Self {
        let pages = FirstFit::new(arena / SLAB * SLAB, PAGE);
        Self { pages, slabs: BTreeMap::new(), small: HashMap::new() }
    }

    /// The size of the class that `bytes` go in.
    fn class(bytes: u64) -> u64 {
        let step = (bytes.max(256).next_power_of_two() / 8).max(16);
        bytes.max(256).next_multiple_of(step)
    }

    fn slab_with_room(&mut self, class: u64) -> Option<u64> {
        let room = |(size, taken): &(u64, u64)| *size == class && *taken < SLAB / class;
        let there = self.slabs.iter().find(|(_, slab)| room(slab)).map(|(start, _)| *start);
        let start = there.or_else(|| self.pages.hole(SLAB))?;
        self.slabs.entry(start).or_insert((class, 0)).1 += 1;
        Some(start)
    }
}

impl Allocator for Classes {
    fn take(&mut self, id: Id, bytes: u64) -> bool {
        if bytes > BIGGEST_CLASS {
            return self.pages.take(id, bytes);
        }
        let slab = self.slab_with_room(Self::class(bytes));
        self.small.extend(slab.map(|slab| (id, slab)));
        slab.is_some()
    }

    fn give_back(&mut self, id: Id) {
        let Some(start) = self.small.remove(&id) else { return self.pages.give_back(id) };
        let slab = self.slabs.get_mut(&start).expect("a region's slab is there");
        slab.1 -= 1;
        if slab.1 == 0 {
            self.slabs.remove(&start);
            self.pages.fill(start, SLAB);
        }
    }

    fn held(&self) -> u64 {
        self.pages.held() + self.slabs.len() as u64 * SLAB
    }

    fn largest(&self) -> u64 {
        self.pages.largest()
    }

    fn reached(&self) -> u64 {
        self.pages.reached
    }
}

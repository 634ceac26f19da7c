//! The code cache against a naive twin, a map from keys to numbers of blocks: random operations on
//! both, and after each the same answers to every question.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::arena::{Arena, CHUNK_BYTES};
use super::cache::CodeCache;
use super::region::{Key, Source, Wanted};
use crate::guest::{GuestAddress, PAGE_SIZE};
use crate::translate::{ENTRY, Exit, Extended, Leave, Stub, TranslatedBlock};

/// Pages that blocks are in.
const PAGES: u64 = 6;
/// Addresses of blocks in a page; the last block goes on in the next page.
const PLACES: [u64; 5] = [0, 0x10, 0x123, 0x800, 0xffd];
/// Bytes of guest code of a block.
const LENGTH: u32 = 6;

#[derive(Clone, Debug)]
enum Operation {
    /// Makes a block for a key that has none, from source bytes of this version; in a region of this
    /// many pages, if the page has none.
    Translate {
        key: Key,
        version: u8,
        span: u64,
    },
    Invalidate(Key),
    RetirePage(u64),
    RetireAll,
    RetireCold,
    Reclaim,
}

fn keys() -> impl Strategy<Value = Key> {
    (0..PAGES, prop::sample::select(PLACES.to_vec()), any::<bool>())
        .prop_map(|(page, at, counted)| Key { pc: GuestAddress(page * PAGE_SIZE + at), counted })
}

fn operations() -> impl Strategy<Value = Operation> {
    prop_oneof![
        12 => (keys(), 0..3_u8, 1..3_u64)
            .prop_map(|(key, version, span)| Operation::Translate { key, version, span }),
        3 => keys().prop_map(Operation::Invalidate),
        2 => (0..PAGES).prop_map(Operation::RetirePage),
        1 => Just(Operation::RetireAll),
        1 => Just(Operation::RetireCold),
        2 => Just(Operation::Reclaim),
    ]
}

/// What there is, and from which version it was made.
#[derive(Default)]
struct Twin {
    blocks: BTreeMap<(u64, bool), u8>,
    /// By page: first and last page of its region.
    regions: BTreeMap<u64, (u64, u64)>,
}

impl Twin {
    fn pages(pc: u64) -> (u64, u64) {
        (pc / PAGE_SIZE, (pc + u64::from(LENGTH) - 1) / PAGE_SIZE)
    }

    /// All regions go that a page lies in or that have a block which reaches into it.
    fn retire(&mut self, page: u64, straddling: &[(u64, u64)]) {
        let own = self.regions.get(&page).copied();
        for (first, last) in own.into_iter().chain(straddling.iter().copied()) {
            self.regions.retain(|_, span| *span != (first, last));
            self.blocks.retain(|(pc, _), _| !(first..=last).contains(&(pc / PAGE_SIZE)));
        }
    }

    /// All regions go but those whose pages are to be kept.
    fn keep(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.regions.retain(|page, _| is_kept(*page));
        let regions = &self.regions;
        self.blocks.retain(|(pc, _), _| regions.contains_key(&(pc / PAGE_SIZE)));
    }
}

/// The host code of each block.
static CODE: [u8; 305] = {
    let mut code = [0x90; 305];
    let mut at = 0;
    while at < ENTRY.len() {
        code[at] = ENTRY[at];
        at += 1;
    }
    code
};

const BLOCK: TranslatedBlock<'static> = TranslatedBlock {
    code: &CODE,
    exits: &[],
    relocations: &[],
    side_table: &[],
    x87_opcodes: &[],
    guest_bytes: LENGTH,
    instructions: 1,
    truncated: false,
    ends_early: false,
    extended: Extended::All,
};

fn source(key: Key, version: u8) -> [u8; LENGTH as usize] {
    [key.pc.0 as u8, (key.pc.0 >> 8) as u8, version, 0, 0, 0]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn it_answers_as_its_twin_does(steps in prop::collection::vec(operations(), 1..120)) {
        let arena = Arena::new(64 * CHUNK_BYTES, &[0xcc; 64], 1).unwrap();
        let mut cache = CodeCache::new(arena, [0; Stub::ALL.len()]);
        let empty = cache.figures().used_bytes;
        let mut twin = Twin::default();
        // Regions of which a block reaches into another page, as long as the region lives.
        let mut reaches: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for step in steps {
            match step {
                Operation::Translate { key, version, span } => {
                    let name = (key.pc.0, key.counted);
                    if twin.blocks.contains_key(&name) {
                        continue;
                    }
                    let page = key.pc.0 / PAGE_SIZE;
                    let region = cache.region_of(key.pc).unwrap_or_else(|| {
                        let free = !twin.regions.contains_key(&(page + 1)) && span > 1;
                        let last = page + u64::from(free);
                        for each in page..=last {
                            twin.regions.insert(each, (page, last));
                        }
                        let end = GuestAddress(last * PAGE_SIZE + PAGE_SIZE - 1);
                        cache.create((GuestAddress(page * PAGE_SIZE), end))
                    });
                    let bytes = source(key, version);
                    let from = Source { bytes: &bytes, checked: false };
                    let revived = cache.revive(region, key, Wanted { bytes: &bytes, checked: false, again: false });
                    let host = match revived {
                        Some(host) => host.unwrap(),
                        None => cache.insert(region, key, &BLOCK, from, true).unwrap(),
                    };
                    prop_assert_eq!(cache.find(key), Some(host));
                    twin.blocks.insert(name, version);
                    let (first, last) = Twin::pages(key.pc.0);
                    let own = twin.regions[&first];
                    if last > own.1 {
                        reaches.entry(last).or_default().push(own);
                    }
                }
                Operation::Invalidate(key) => {
                    cache.invalidate(key);
                    twin.blocks.remove(&(key.pc.0, key.counted));
                }
                Operation::RetirePage(page) => {
                    cache.retire_page(GuestAddress(page * PAGE_SIZE));
                    let straddling = reaches.remove(&page).unwrap_or_default();
                    twin.retire(page, &straddling);
                }
                Operation::RetireAll => {
                    cache.retire_all();
                    twin = Twin::default();
                }
                Operation::RetireCold => {
                    cache.retire_cold();
                    twin.keep(|page| cache.region_of(GuestAddress(page * PAGE_SIZE)).is_some());
                }
                Operation::Reclaim => {
                    cache.hurry();
                    cache.reclaim();
                }
            }
            let regions = &twin.regions;
            for spans in reaches.values_mut() {
                spans.retain(|span| regions.get(&span.0) == Some(span));
            }
            for page in 0..PAGES {
                let address = GuestAddress(page * PAGE_SIZE);
                prop_assert_eq!(cache.region_of(address).is_some(), regions.contains_key(&page));
                for (at, counted) in PLACES.into_iter().flat_map(|at| [(at, false), (at, true)]) {
                    let key = Key { pc: address.wrapping_add(at), counted };
                    let found = cache.find(key);
                    let version = twin.blocks.get(&(key.pc.0, counted));
                    prop_assert_eq!(found.is_some(), version.is_some(), "{:?}", key);
                    let Some(host) = found else { continue };
                    let located = cache.locate(host + 7).unwrap();
                    prop_assert_eq!((located.block.key, located.offset), (key, 7));
                    prop_assert_eq!(Some(&located.source().bytes[2]), version, "made from what is there");
                }
            }
        }
        cache.retire_all();
        for _ in 0..1000 {
            cache.hurry();
            cache.reclaim();
            if cache.waiting() == 0 {
                break;
            }
            std::thread::yield_now();
        }
        prop_assert_eq!(cache.waiting(), 0);
        prop_assert_eq!(cache.figures().used_bytes, empty);
    }
}

/// Jumps to a block are pointed at the one that comes in its place, but for those that count their instructions
/// if it does not.
#[test]
fn jumps_to_a_block_are_joined_to_its_successor() {
    let arena = Arena::new(64 * CHUNK_BYTES, &[0xcc; 64], 1).unwrap();
    let mut cache = CodeCache::new(arena, [0; Stub::ALL.len()]);
    let at = |offset: u64, counted| Key { pc: GuestAddress(offset), counted };
    let region = cache.create((GuestAddress(0), GuestAddress(PAGE_SIZE - 1)));
    let mut insert = |key: Key, target: u64, version| {
        let leave = Leave::Direct { target: GuestAddress(target), patch: 8 };
        let exits = [Exit { offset: 16, leave }];
        let block = TranslatedBlock { exits: &exits, ..BLOCK };
        let bytes = source(key, version);
        cache.insert(region, key, &block, Source { bytes: &bytes, checked: false }, true).unwrap()
    };
    let (key, before) = (at(0x100, false), insert(at(0x100, false), 0x200, 0));
    for (from, counted, target) in
        [(0x10, false, 0x100), (0x20, true, 0x100), (0x30, false, 0x200), (0x40, false, 0x100)]
    {
        insert(at(from, counted), target, 0);
    }
    let after = insert(key, 0x300, 1);
    assert_ne!(before, after);
    cache.rejoin(key, after);
    assert_eq!(cache.figures().chained, 2);
}

//! Models of `src/code/table.rs`: regions swapped under readers. Writers hold the machine's lock; where
//! there is one writer the lock is left out.

use super::support::{HostCode, REUSED, explore, pin, spawn, warm_up};
use crate::code::index::{Index, Tagged};
use crate::code::limbo::{Limbo, hurry};
use crate::code::sync::{Arc, AtomicBool, Mutex, Ordering};
use crate::code::table::{Live, Table};

type Region = Arc<Live<usize>>;

const PAGE: u64 = 7;
const KEY: Tagged = Tagged { pc: 0x7000, tag: 1 };

fn region(block: Option<usize>) -> Region {
    let region = Live::new(Index::new(2));
    if let Some(block) = block {
        region.index.insert(KEY, block, &pin());
    }
    Arc::new(region)
}

/// A table with a page in a region.
fn table(first: &Region) -> Arc<Table<usize>> {
    let table = Table::new(1);
    table.insert(PAGE, Arc::clone(first), &pin());
    Arc::new(table)
}

/// I5: the code of a region that was replaced is not reused under a reader that found it, and nodes are
/// not freed under one.
/// Threads: a reader; who swaps the region, lets the epoch go on, and reuses what came back.
/// Mutants: table-node-retired-before-it-is-out.
#[test]
fn no_use_after_swap() {
    explore(2, || {
        let (old, host) = (region(Some(0)), HostCode::new(&[10, 11]));
        let table = table(&old);
        let reader = spawn({
            let (table, host) = (Arc::clone(&table), Arc::clone(&host));
            move || {
                warm_up();
                let guard = pin();
                if let Some(block) = table.find(PAGE, KEY, &guard) {
                    assert_ne!(host.run(block), REUSED);
                }
            }
        });
        let limbo = Limbo::new();
        {
            let guard = pin();
            old.retire();
            table.remove(PAGE, &old, &guard);
            limbo.retire(0_usize);
            limbo.let_go(pin);
        }
        hurry(pin);
        for block in limbo.returned() {
            host.write(block, REUSED);
        }
        reader.join().expect("reads");
    });
}

/// I7: a lookup that starts after a region was retired finds nothing in it, though its pages have not
/// been taken out yet.
/// Threads: a reader; who retires and then says so.
/// Mutants: table-find-does-not-ask-if-alive, table-retire-stores-nothing.
#[test]
fn no_stale_lookup_after_retire() {
    explore(3, || {
        let old = region(Some(0));
        let table = table(&old);
        let said = Arc::new(AtomicBool::new(false));
        let reader = spawn({
            let (table, said) = (Arc::clone(&table), Arc::clone(&said));
            move || {
                warm_up();
                let after = said.load(Ordering::Acquire);
                let found = table.find(PAGE, KEY, &pin());
                assert!(!after || found.is_none(), "found in a retired region");
            }
        });
        old.retire();
        said.store(true, Ordering::Release);
        table.remove(PAGE, &old, &pin());
        reader.join().expect("reads");
    });
}

/// I9: a page whose node comes after that of a retired region is found all the time, also by a reader that
/// stands on the node that goes, and is found by who comes while a new one is put before it.
/// Threads: a reader; who takes a neighbour out, puts another in, and lets the epoch go on.
/// Mutants: table-bucket-read-relaxed, table-find-stops-at-a-retired-region,
///     table-insert-links-late, table-insert-relaxed, table-link-cut-first,
///     table-node-cut-off.
#[test]
fn neighbours_are_always_found() {
    explore(2, || {
        const NEIGHBOUR: u64 = PAGE + 1;
        let (stays, goes) = (region(Some(3)), region(None));
        let table = table(&stays);
        table.insert(NEIGHBOUR, Arc::clone(&goes), &pin());
        let reader = spawn({
            let table = Arc::clone(&table);
            move || {
                warm_up();
                assert_eq!(table.find(PAGE, KEY, &pin()), Some(3));
            }
        });
        {
            let guard = pin();
            goes.retire();
            table.remove(NEIGHBOUR, &goes, &guard);
            table.insert(NEIGHBOUR, region(None), &guard);
        }
        hurry(pin);
        reader.join().expect("reads");
    });
}

/// What the machine's lock guards, as far as regions go.
struct Locked {
    /// The page's, once something was translated there.
    region: Option<Region>,
    /// Guest code, by version.
    source: u64,
    /// Blocks in the region.
    blocks: Vec<usize>,
    /// The next block of host code.
    free: usize,
}

struct Machine {
    table: Arc<Table<usize>>,
    host: Arc<HostCode>,
    limbo: Limbo<usize>,
    locked: Mutex<Locked>,
}

impl Machine {
    fn new() -> Arc<Self> {
        let region = region(None);
        let table = table(&region);
        Self::with(table, Some(region))
    }

    fn with(table: Arc<Table<usize>>, region: Option<Region>) -> Arc<Self> {
        Arc::new(Self {
            table,
            host: HostCode::new(&[0; 4]),
            limbo: Limbo::new(),
            locked: Mutex::new(Locked { region, source: 10, blocks: Vec::new(), free: 0 }),
        })
    }

    /// A lookup without the lock; failing that, one with it, and a translation into the region that is
    /// the page's then. Runs what it found; the version that this was translated from.
    fn lookup_or_translate(&self) -> u64 {
        let guard = pin();
        let block = self.table.find(PAGE, KEY, &guard).unwrap_or_else(|| {
            let mut locked = self.locked.lock().expect("holds");
            self.table.find(PAGE, KEY, &guard).unwrap_or_else(|| {
                let block = locked.free;
                locked.free += 1;
                self.host.write(block, locked.source);
                locked.blocks.push(block);
                let region = locked.region.get_or_insert_with(|| {
                    let made = region(None);
                    self.table.insert(PAGE, Arc::clone(&made), &guard);
                    made
                });
                region.index.insert(KEY, block, &guard);
                assert_eq!(self.table.find(PAGE, KEY, &guard), Some(block), "in no region");
                block
            })
        });
        self.host.run(block)
    }

    /// The guest code changes: its region is replaced by an empty one.
    fn swap(&self) {
        let mut locked = self.locked.lock().expect("holds");
        locked.source += 1;
        let fresh = region(None);
        let guard = pin();
        let old = locked.region.replace(Arc::clone(&fresh)).expect("the page has a region");
        old.retire();
        for block in std::mem::take(&mut locked.blocks) {
            self.limbo.retire(block);
        }
        self.table.insert(PAGE, fresh, &guard);
        self.table.remove(PAGE, &old, &guard);
        self.limbo.let_go(pin);
    }

    /// The region is replaced, but its guest code did not change: its blocks go on.
    fn swap_and_adopt(&self) {
        let mut locked = self.locked.lock().expect("holds");
        let fresh = region(locked.blocks.first().copied());
        let guard = pin();
        let old = locked.region.replace(Arc::clone(&fresh)).expect("the page has a region");
        old.retire();
        self.table.insert(PAGE, fresh, &guard);
        self.table.remove(PAGE, &old, &guard);
    }

    /// Something else is mapped at the page; its region goes, if it has one.
    fn remap(&self) {
        let mut locked = self.locked.lock().expect("holds");
        locked.source += 1;
        let Some(old) = locked.region.take() else { return };
        let guard = pin();
        old.retire();
        self.table.remove(PAGE, &old, &guard);
        for block in std::mem::take(&mut locked.blocks) {
            self.limbo.retire(block);
        }
        self.limbo.let_go(pin);
    }

    fn reclaim(&self) {
        hurry(pin);
        for block in self.limbo.returned() {
            self.host.write(block, REUSED);
        }
    }
}

/// I7, I8: a translation that meets a swap goes into the region it was made for, with that region's
/// code; nobody finds it afterwards.
/// Threads: a vCPU that looks up or translates; who swaps, reclaims, and looks up then.
/// Mutants: index-entry-published-relaxed, limbo-has-an-epoch-of-its-own,
///     table-insert-keeps-what-is-there.
#[test]
fn a_translation_meets_a_swap() {
    explore(2, || {
        let machine = Machine::new();
        let vcpu = spawn({
            let machine = Arc::clone(&machine);
            move || {
                warm_up();
                let version = machine.lookup_or_translate();
                assert!([10, 11].contains(&version), "ran {version}");
            }
        });
        machine.swap();
        assert_eq!(machine.lookup_or_translate(), 11);
        machine.reclaim();
        vcpu.join().expect("runs");
    });
}

/// I7, I8: a region is made for a page while something else is mapped there, twice.
/// Threads: a vCPU that translates; who remaps, looks up, and remaps again.
#[test]
fn a_region_is_made_while_its_page_is_remapped() {
    explore(2, || {
        let machine = Machine::with(Arc::new(Table::new(1)), None);
        let vcpu = spawn({
            let machine = Arc::clone(&machine);
            move || {
                warm_up();
                let first = machine.lookup_or_translate();
                assert!(machine.lookup_or_translate() >= first, "back to an older mapping");
            }
        });
        machine.remap();
        assert_eq!(machine.lookup_or_translate(), 11);
        machine.remap();
        vcpu.join().expect("runs");
        assert_eq!(machine.lookup_or_translate(), 12);
    });
}

/// I5, I7: blocks adopted by the region that replaces theirs run on; an invalidation meanwhile retires
/// each once, and nobody is in them when they go.
/// Threads: who adopts, then runs; who invalidates and reclaims.
/// Mutants: limbo-ignores-the-epoch.
#[test]
fn an_adoption_meets_an_invalidation() {
    explore(2, || {
        let machine = Machine::new();
        machine.lookup_or_translate();
        let adopter = spawn({
            let machine = Arc::clone(&machine);
            move || {
                warm_up();
                machine.swap_and_adopt();
                assert!([10, 11].contains(&machine.lookup_or_translate()));
            }
        });
        machine.swap();
        machine.reclaim();
        adopter.join().expect("adopts");
        assert_eq!(machine.lookup_or_translate(), 11);
    });
}

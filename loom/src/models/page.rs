//! Models of pages that are written and executed. A page is *watched*, so that a store faults and the
//! page's region is replaced before it is done; or it is writable, and its blocks compare their source
//! before they run (*checked*). The MMU, the fault handler and the translator are written down here in
//! terms of the real table; the machine's lock orders translations and faults.

use super::support::{HostCode, explore, pin, spawn, warm_up};
use crate::code::index::{Index, Tagged};
use crate::code::sync::{Arc, Mutex, MutexGuard};
use crate::code::table::{Live, Table};

const PAGE: u64 = 7;
const KEY: Tagged = Tagged { pc: 0x7000, tag: 1 };
/// A bit of a block: it compares its source before it runs.
const CHECKED: u64 = 1 << 8;

/// More translations than any interleaving makes.
const MOST_BLOCKS: usize = 64;

/// Guest code of two words and how stores to it end.
struct Page {
    words: [u64; 2],
    watched: bool,
}

struct Locked {
    region: Arc<Live<usize>>,
    checked: bool,
    /// The next block of host code.
    free: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    WatchThenRead,
    ReadThenWatch,
}

struct Machine {
    table: Table<usize>,
    host: Arc<HostCode>,
    page: Mutex<Page>,
    locked: Mutex<Locked>,
    order: Order,
}

fn region() -> Arc<Live<usize>> {
    Arc::new(Live::new(Index::new(2)))
}

impl Machine {
    fn new(order: Order) -> Arc<Self> {
        let (table, region) = (Table::new(1), region());
        table.insert(PAGE, Arc::clone(&region), &pin());
        Arc::new(Self {
            table,
            host: HostCode::new(&[0; MOST_BLOCKS]),
            page: Mutex::new(Page { words: [0, 0], watched: false }),
            locked: Mutex::new(Locked { region, checked: false, free: 0 }),
            order,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock().expect("holds")
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().expect("holds")
    }

    /// A guest's store to its code.
    fn store(&self, word: usize) {
        loop {
            {
                let mut page = self.page();
                if !page.watched {
                    page.words[word] = 1;
                    return;
                }
            }
            let mut locked = self.lock();
            self.replace(&mut locked);
            self.page().watched = false;
        }
    }

    fn replace(&self, locked: &mut Locked) {
        let (guard, fresh) = (pin(), region());
        let old = std::mem::replace(&mut locked.region, Arc::clone(&fresh));
        old.retire();
        self.table.insert(PAGE, fresh, &guard);
        self.table.remove(PAGE, &old, &guard);
    }

    /// To checked blocks, or back to a watched page.
    fn switch(&self, checked: bool) {
        let mut locked = self.lock();
        locked.checked = checked;
        self.replace(&mut locked);
        if checked {
            self.page().watched = false;
        }
    }

    /// Reads the source a word at a time, as decoding does.
    fn read(&self) -> u64 {
        let first = self.page().words[0];
        first | self.page().words[1] << 1
    }

    fn translate(&self) {
        let mut locked = self.lock();
        let guard = pin();
        if self.table.find(PAGE, KEY, &guard).is_some() {
            return;
        }
        let early = (self.order == Order::ReadThenWatch).then(|| self.read());
        if !locked.checked {
            self.page().watched = true;
        }
        let source = early.unwrap_or_else(|| self.read());
        let block = locked.free;
        locked.free += 1;
        self.host.write(block, if locked.checked { source | CHECKED } else { source });
        locked.region.index.insert(KEY, block, &guard);
    }

    /// Runs the page's code: the words that it was translated from.
    fn run(&self) -> u64 {
        loop {
            let found = {
                let guard = pin();
                let block = self.table.find(PAGE, KEY, &guard);
                block.map(|block| (block, self.host.run(block)))
            };
            let Some((block, code)) = found else {
                self.translate();
                continue;
            };
            let source = code & !CHECKED;
            if code & CHECKED == 0 || self.is_now(source) {
                return source;
            }
            let mut locked = self.lock();
            if self.table.find(PAGE, KEY, &pin()) == Some(block) {
                self.replace(&mut locked);
            }
        }
    }

    /// Compares at one time: a block compares all its bytes before its first instruction.
    fn is_now(&self, source: u64) -> bool {
        let words = self.page().words;
        words[0] | words[1] << 1 == source
    }
}

/// The words are stored in order, so that the second without the first was never there.
const NEVER_THERE: u64 = 0b10;
const BOTH: u64 = 0b11;

fn write_while_translating(order: Order) {
    explore(3, move || {
        let machine = Machine::new(order);
        let writer = spawn({
            let machine = Arc::clone(&machine);
            move || {
                warm_up();
                machine.store(0);
                machine.store(1);
                assert_eq!(machine.run(), BOTH, "what this vCPU wrote before");
            }
        });
        assert_ne!(machine.run(), NEVER_THERE);
        writer.join().expect("writes");
        assert_eq!(machine.run(), BOTH);
    });
}

/// I3, I8: a translation never mixes old and new bytes, and what a vCPU stored it runs next.
/// Threads: one that stores two words and runs them; one that translates and runs.
#[test]
fn a_translation_meets_a_store() {
    write_while_translating(Order::WatchThenRead);
}

/// The same with the source read before the page is watched: the model must see it.
#[test]
#[ignore = "must fail"]
fn reading_before_watching_is_seen() {
    write_while_translating(Order::ReadThenWatch);
}

/// I3, I8: the same while the page goes from watched to checked and back.
/// Threads: one that stores and runs; one that switches to checked, runs, and switches back.
/// Mutants: table-remove-takes-any-region.
#[test]
fn a_page_is_checked_and_watched_again() {
    explore(2, || {
        let machine = Machine::new(Order::WatchThenRead);
        machine.run();
        let writer = spawn({
            let machine = Arc::clone(&machine);
            move || {
                warm_up();
                machine.store(0);
                assert_eq!(machine.run(), 1, "what this vCPU wrote before");
            }
        });
        machine.switch(true);
        machine.run();
        machine.switch(false);
        writer.join().expect("writes");
        assert_eq!(machine.run(), 1);
    });
}

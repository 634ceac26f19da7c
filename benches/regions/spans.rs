//! One region for a whole mapping against one for each page: what a jump from page to page costs, and
//! what is lost when one page is invalidated.

use std::time::Instant;

use serde_json::{Value, json};
use tregion::exec::{Machine, Vcpu};
use tregion::guest::{GuestAddress, Permissions};

use crate::Failure;
use crate::guests::{CODE, range, run};
use crate::record::{Samples, show};

const PAGES: u64 = 64;
/// How much later the code of a page begins than that of the page before: jump caches are indexed by
/// the low sixteen bits of an address, so that with 0 it takes four pages in turn to one entry.
const SHIFTS: [u64; 2] = [40, 0];
/// Blocks of a page that jump to the next one, before the one that jumps to the next page.
const INSIDE: usize = 7;
const TURNS: u64 = 20_000;
const ROUNDS: usize = 15;
/// The number of RCX.
const RCX: usize = 1;

struct Spans {
    name: &'static str,
    shift: u64,
    machine: Machine,
    vcpu: Vcpu,
    warm: Samples,
    turn: Samples,
    anew: Samples,
    /// Blocks translated, and adopted, since one page was invalidated.
    made: (u64, u64),
}

pub(crate) fn spans() -> Result<Value, Failure> {
    let mut all = Vec::new();
    for shift in SHIFTS {
        all.push(Spans::new("one region", Permissions::ReadExecute, shift)?);
        all.push(Spans::new("a region a page", Permissions::ReadWriteExecute, shift)?);
    }
    for _ in 0..ROUNDS {
        all.iter_mut().try_for_each(Spans::round)?;
    }
    Ok(all.into_iter().map(Spans::done).collect())
}

impl Spans {
    /// A mapping of pages, through which control goes in a ring. Only one that cannot be written is one
    /// region.
    fn new(name: &'static str, permissions: Permissions, shift: u64) -> Result<Self, Failure> {
        let machine = Machine::new(40)?;
        machine.map(range(CODE, PAGES * 0x1000)?, permissions)?;
        for page in 0..PAGES {
            machine.write(GuestAddress(CODE + page * (0x1000 + shift)), &body(page, shift))?;
        }
        let vcpu = machine.vcpu()?;
        let [warm, turn, anew] = [(); 3].map(|()| Samples::default());
        Ok(Self { name, shift, machine, vcpu, warm, turn, anew, made: (0, 0) })
    }

    fn run(&mut self, turns: u64) {
        self.vcpu.set_gpr(RCX, turns);
        run(&mut self.vcpu, CODE);
    }

    fn round(&mut self) -> Result<(), Failure> {
        self.run(2);
        let begun = Instant::now();
        self.run(TURNS);
        self.warm.add(begun);
        let begun = Instant::now();
        self.run(1);
        self.turn.add(begun);
        let before = self.machine.figures();
        self.machine.invalidate_soon(range(CODE + PAGES / 2 * 0x1000, 1)?);
        let begun = Instant::now();
        self.run(1);
        self.anew.add(begun);
        let after = self.machine.figures();
        let translated = after.translations - before.translations;
        self.made = (translated, after.blocks_adopted - before.blocks_adopted);
        Ok(())
    }

    fn done(self) -> Value {
        let (warm, turn, anew) = (self.warm.summary(), self.turn.summary(), self.anew.summary());
        let jumps = (TURNS * PAGES * (INSIDE as u64 + 1)) as f64;
        let each = warm["median"].as_f64().unwrap_or(0.0) / jumps;
        let name = format!("{}, shifted by {}", self.name, self.shift);
        show(&format!("{name}: {TURNS} turns ({each:.2} ns a block)"), &warm);
        show(&format!("{name}: one turn, warm"), &turn);
        show(&format!("{name}: one turn behind an invalidation"), &anew);
        println!("{name}: blocks translated and adopted: {:?}", self.made);
        json!({
            "span": self.name, "shift": self.shift, "pages": PAGES, "blocks_of_a_page": INSIDE + 1, "turns": TURNS,
            "nanoseconds": warm, "one_turn": turn, "one_turn_anew": anew,
            "translated": self.made.0, "adopted": self.made.1,
        })
    }
}

/// The code of a page: jumps to the next instruction, then one to the next page. The last page counts
/// down RCX and jumps to the first, or halts.
fn body(page: u64, shift: u64) -> Vec<u8> {
    let mut bytes = [0xeb, 0x00].repeat(INSIDE);
    if page + 1 < PAGES {
        let at = bytes.len() as i32 + 5;
        bytes.push(0xe9);
        bytes.extend((0x1000 + shift as i32 - at).to_le_bytes());
    } else {
        // dec rcx; jz over the jump; jmp to the first page; hlt
        bytes.extend([0x48, 0xff, 0xc9, 0x74, 0x05, 0xe9]);
        let back = -((page * (0x1000 + shift)) as i32) - (bytes.len() as i32 + 4);
        bytes.extend(back.to_le_bytes());
        bytes.push(0xf4);
    }
    bytes
}

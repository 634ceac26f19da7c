//! Accesses to pages that are trapped in the window, which memory hooks and devices want to see.
//!
//! The first access of an instruction there comes as a fault of translated code, which costs
//! microseconds. An instruction that does it again is *noted* ([`Sites`]). If it just moves a word, blocks leave
//! that to the run loop and go on behind it ([`Stub::Observed`]); before others they end, and those are stepped, by
//! their bounce at once. If what it accesses is trapped no more, it becomes part of blocks again.
//!
//! [`Stub::Observed`]: crate::translate::Stub::Observed

use std::collections::BTreeMap;

use iced_x86::{Instruction, InstructionInfoFactory};
use smallvec::SmallVec;

use super::core::Core;
use super::exit::{Exit, vector};
use super::shared::{Locked, Running, Shared};
use super::vcpu::{End, Fault, Handled, Vcpu, Way};
use crate::code::Pinned;
use crate::guest::{GuestAddress, memory_bytes};
use crate::translate::{WordMove, is_canonical};

/// Faults after which an instruction is noted.
const FAULTS: u32 = 2;
/// Times in a row that it meets no trap after which it is not.
const CALM_STEPS: u32 = 64;
/// Instructions that are known at most; when there are more, all are forgotten.
const MOST_SITES: usize = 1 << 14;

/// Instructions that have met traps. What is known here is a matter of speed alone.
#[derive(Debug, Default)]
pub(super) struct Sites(BTreeMap<GuestAddress, Site>);

#[derive(Debug, Default)]
struct Site {
    /// Faults so far, up to [`FAULTS`].
    faults: u32,
    /// How often it was executed since it met a trap.
    calm: u32,
}

impl Site {
    fn is_noted(&self) -> bool {
        self.faults >= FAULTS
    }
}

impl Sites {
    /// The instruction at `pc`, as it was translated, has met a trap; whether it is noted now.
    fn note_fault(&mut self, pc: GuestAddress) -> bool {
        if self.0.len() >= MOST_SITES {
            self.0.clear();
        }
        let site = self.0.entry(pc).or_default();
        (site.faults, site.calm) = ((site.faults + 1).min(FAULTS), 0);
        site.is_noted()
    }

    /// Whether the instruction at `pc` has met a trap lately.
    fn knows(&self, pc: GuestAddress) -> bool {
        !self.0.is_empty() && self.0.contains_key(&pc)
    }

    /// The instruction at `pc`, which is known, is executed and meets a trap or not; whether it is no
    /// more to be noted.
    fn note_step(&mut self, pc: GuestAddress, trapped: bool) -> bool {
        let site = self.0.entry(pc).or_default();
        site.calm = if trapped { 0 } else { site.calm + 1 };
        let calm = site.calm >= CALM_STEPS;
        if calm {
            self.0.remove(&pc);
        }
        calm
    }

    /// The noted instructions of `size` bytes of code at `pc`, in order.
    pub(super) fn noted(&self, pc: GuestAddress, size: u64) -> SmallVec<[GuestAddress; 4]> {
        if self.0.is_empty() {
            return SmallVec::new();
        }
        let last = GuestAddress(pc.0.saturating_add(size));
        self.0.range(pc..last).filter(|(_, site)| site.is_noted()).map(|(&at, _)| at).collect()
    }
}

impl Core {
    /// The instruction at `pc` of the block at `block` has met a trap.
    pub(super) fn note_trap(&mut self, pc: GuestAddress, block: GuestAddress) {
        if self.sites.note_fault(pc) {
            // Any block that has it in it is found by its next fault.
            self.invalidate_block(block);
        }
    }

    /// Whether some of `size` bytes at `address` are trapped.
    pub(super) fn traps(&self, address: GuestAddress, size: usize) -> bool {
        let last = address.wrapping_add(size.max(1) as u64 - 1);
        self.memory.is_trapped(address) || self.memory.is_trapped(last)
    }
}

impl Vcpu {
    /// Whether a fault is an access to what is trapped.
    pub(super) fn is_trap(&self, core: &Core, fault: Fault) -> bool {
        let address = GuestAddress(fault.address.wrapping_sub(self.memory.block().window));
        fault.vector == vector::PF && core.memory.is_trapped(address)
    }

    /// Whether the explicit memory operand of the instruction at RIP is trapped.
    pub(super) fn meets_trap(&self, core: &Core, instruction: &Instruction) -> bool {
        let address = self.operand_address(instruction).filter(|_| core.memory.has_traps());
        let size = memory_bytes(instruction);
        address.is_some_and(|address| core.traps(GuestAddress(address), size))
    }

    /// The instruction at RIP is about to be stepped: if it is known, notes whether it had to be.
    pub(super) fn note_site(&self, core: &mut Core, instruction: &Instruction) {
        if !core.sites.knows(self.pc) {
            return;
        }
        let trapped = self.meets_trap(core, instruction) || self.uses_trap(core, instruction);
        if core.sites.note_step(self.pc, trapped) {
            core.invalidate_block(self.pc);
        }
    }

    /// Whether memory that the instruction at RIP uses without an operand is trapped.
    fn uses_trap(&self, core: &Core, instruction: &Instruction) -> bool {
        let mut information = InstructionInfoFactory::new();
        information.info(instruction).used_memory().iter().any(|used| {
            let address = used.virtual_address(0, |register, _, _| self.register_value(register));
            let size = used.memory_size().size();
            address.is_some_and(|address| core.traps(GuestAddress(address), size))
        })
    }

    /// Executes the instruction at RIP if all that it does is to move a word; whether it did.
    pub(super) fn move_word(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<bool, Exit> {
        // The order of exceptions is the processor's business.
        let word = WordMove::of(instruction).filter(|_| !self.checks_alignment());
        let Some(word) = word else { return Ok(false) };
        let value = match word.to {
            Some(_) => 0,
            None => self.operand(core, instruction, 1, usize::from(word.bytes))?,
        };
        let address = self.canonical_operand(instruction)?;
        self.move_at(core, address, word, value)?;
        Ok(true)
    }

    /// Loads a word, or stores `value`, and passes the instruction at RIP.
    fn move_at(
        &mut self,
        core: &mut Locked<'_>,
        address: GuestAddress,
        word: WordMove,
        value: u64,
    ) -> Result<(), Exit> {
        let size = usize::from(word.bytes);
        match word.to {
            Some(to) => {
                let mut bytes = [0; 8];
                self.load(core, address, &mut bytes[..size])?;
                self.set_register(to, word.extended(u64::from_le_bytes(bytes)));
            }
            None => self.store(core, address, &value.to_le_bytes()[..size])?,
        }
        self.pc = self.pc.wrapping_add(u64::from(word.length));
        Ok(())
    }

    /// A block leaves it to the run loop to move a word, and goes on behind that.
    pub(super) fn observed(
        &mut self,
        shared: &Shared,
        pinned: &mut Pinned<'_>,
        running: &mut Running<'_>,
        counted: bool,
    ) -> Handled {
        let block = self.memory.block();
        let word = WordMove::unpacked(block.word_move);
        let (address, value) = (GuestAddress(block.observed), block.word);
        let last = address.wrapping_add(u64::from(word.bytes) - 1);
        self.pc = GuestAddress(block.target);
        let plain = is_canonical(address.0) && is_canonical(last.0) && !self.checks_alignment();
        // Who has changed code waits for those who run it, and not for this: what is fetched now may be another
        // instruction.
        let core = running.core();
        let changed = shared.gates.generation() != self.generation;
        if !plain || self.on_code || changed {
            return Handled::End(self.back_out(core, counted));
        }
        // The block may be gone afterwards.
        let left = if counted { self.undone(core).0 } else { 0 };
        let at = self.pc;
        let moved = pinned.unpinned(|| self.move_at(running.core(), address, word, value));
        let core = running.core();
        let trapped = core.traps(address, usize::from(word.bytes));
        if !trapped && core.sites.knows(at) && core.sites.note_step(at, false) {
            self.invalidate_left(core);
        }
        // Under the lock nothing is retired without being counted: a block that is current now stays until the
        // epoch is not pinned any more.
        let current = shared.gates.generation() == self.generation;
        let stop = self.stop_asked.take();
        let (end, left) = match moved {
            Ok(()) if current && !stop && !self.gate.is_requested() => {
                let block = self.memory.block_mut();
                block.entry = block.exit_address;
                return Handled::Enter(Way::Behind);
            }
            Ok(()) if stop => (End::Exit(Exit::Stopped), left.saturating_sub(1)),
            Ok(()) => (End::Go, left.saturating_sub(1)),
            Err(exit) => (End::Exit(exit), left),
        };
        self.memory.block_mut().budget += i64::from(left);
        Handled::End(end)
    }

    /// The block that was left behind an instruction that is done does not go on.
    pub(super) fn stay_behind(&mut self, core: &Core, counted: bool) -> End {
        if counted {
            let left = self.undone(core).0.saturating_sub(1);
            self.memory.block_mut().budget += i64::from(left);
        }
        End::Go
    }

    /// The block that was left is to be translated anew.
    fn invalidate_left(&self, core: &mut Core) {
        let left = core.cache.locate(self.memory.block().exit_address - 1);
        if let Some(pc) = left.map(|located| located.block.key.pc) {
            core.invalidate_block(pc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: GuestAddress = GuestAddress(0x1234);

    fn is_noted(sites: &Sites) -> bool {
        let noted = sites.noted(GuestAddress(0x1000), 0x1000);
        assert!(noted.iter().all(|&at| at == SITE));
        !noted.is_empty()
    }

    #[test]
    fn who_faults_often_is_noted_until_it_is_calm() {
        let mut sites = Sites::default();
        for fault in 1..=FAULTS {
            assert!(!is_noted(&sites));
            assert_eq!(sites.note_fault(SITE), fault == FAULTS);
        }
        assert!(is_noted(&sites) && sites.knows(SITE));
        assert!(sites.noted(GuestAddress(0x1235), 0x1000).is_empty());
        assert!(sites.noted(GuestAddress(0x1000), 0x234).is_empty());
        for _ in 1..CALM_STEPS {
            assert!(!sites.note_step(SITE, false));
        }
        // One trap, and all of it is to be calm again.
        assert!(!sites.note_step(SITE, true));
        for step in 1..=CALM_STEPS {
            assert!(is_noted(&sites));
            assert_eq!(sites.note_step(SITE, false), step == CALM_STEPS);
        }
        assert!(!is_noted(&sites) && !sites.knows(SITE));
    }

    #[test]
    fn there_is_an_end_to_what_is_known() {
        let mut sites = Sites::default();
        for address in 0..2 * MOST_SITES as u64 {
            sites.note_fault(GuestAddress(address));
            assert!(sites.0.len() <= MOST_SITES);
        }
    }
}

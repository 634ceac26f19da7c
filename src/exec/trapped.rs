//! Accesses to pages that are trapped in the window, which memory hooks and devices want to see.
//!
//! The first access of an instruction there comes as a fault of translated code, which costs
//! microseconds. An instruction that does it again is *noted* ([`Sites`]): blocks end before it, and it
//! is stepped, by its bounce at once, or without one if it just moves a word. If what it accesses is
//! trapped no more, it becomes part of blocks again.

use std::collections::BTreeMap;

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind};
use smallvec::SmallVec;

use super::core::Core;
use super::exit::{Exit, vector};
use super::shared::Locked;
use super::vcpu::{Fault, Vcpu};
use crate::guest::GuestAddress;

/// Faults after which an instruction is stepped.
const FAULTS: u32 = 2;
/// Steps in a row that meet no trap after which it is not.
const CALM_STEPS: u32 = 64;
/// Instructions that are known at most; when there are more, all are forgotten.
const MOST_SITES: usize = 1 << 14;

/// Instructions that have met traps. What is known here is a matter of speed alone.
#[derive(Debug, Default)]
pub(super) struct Sites(BTreeMap<GuestAddress, Site>);

#[derive(Debug, Default)]
struct Site {
    /// Faults so far, up to [`FAULTS`], from where on it is stepped.
    faults: u32,
    /// Steps since it met a trap.
    calm: u32,
}

impl Site {
    fn is_stepped(&self) -> bool {
        self.faults >= FAULTS
    }
}

impl Sites {
    /// The instruction at `pc`, as it was translated, has met a trap; whether it is to be stepped.
    fn note_fault(&mut self, pc: GuestAddress) -> bool {
        if self.0.len() >= MOST_SITES {
            self.0.clear();
        }
        let site = self.0.entry(pc).or_default();
        (site.faults, site.calm) = ((site.faults + 1).min(FAULTS), 0);
        site.is_stepped()
    }

    /// Whether the instruction at `pc` has met a trap lately.
    fn knows(&self, pc: GuestAddress) -> bool {
        !self.0.is_empty() && self.0.contains_key(&pc)
    }

    /// The instruction at `pc`, which is known, is stepped and meets a trap or not; whether it need not
    /// be stepped any more.
    fn note_step(&mut self, pc: GuestAddress, trapped: bool) -> bool {
        let site = self.0.entry(pc).or_default();
        site.calm = if trapped { 0 } else { site.calm + 1 };
        let calm = site.calm >= CALM_STEPS;
        if calm {
            self.0.remove(&pc);
        }
        calm
    }

    /// The instructions of `size` bytes of code at `pc` that are to be stepped, in order.
    pub(super) fn stepped(&self, pc: GuestAddress, size: u64) -> SmallVec<[GuestAddress; 4]> {
        if self.0.is_empty() {
            return SmallVec::new();
        }
        let last = GuestAddress(pc.0.saturating_add(size));
        self.0.range(pc..last).filter(|(_, site)| site.is_stepped()).map(|(&at, _)| at).collect()
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
        let size = instruction.memory_size().size();
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

    /// Executes the instruction at RIP if all that it does is to move a word between a general-purpose
    /// register, or an immediate, and memory; whether it did.
    pub(super) fn move_word(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<bool, Exit> {
        use Mnemonic as M;
        let moves = matches!(instruction.mnemonic(), M::Mov | M::Movzx | M::Movsx | M::Movsxd);
        let loads = instruction.op1_kind() == OpKind::Memory && instruction.op0_register().is_gpr();
        let stores = instruction.op0_kind() == OpKind::Memory
            && (instruction.op1_kind() != OpKind::Register || instruction.op1_register().is_gpr());
        // The order of exceptions is the processor's business.
        if !moves || !(loads || stores) || self.checks_alignment() {
            return Ok(false);
        }
        let size = instruction.memory_size().size();
        let mut value = self.operand(core, instruction, 1, size)?;
        if matches!(instruction.mnemonic(), M::Movsx | M::Movsxd) {
            let above = 64 - 8 * size as u32;
            value = ((value << above) as i64 >> above) as u64;
        }
        self.set_operand(core, instruction, value, size)?;
        self.pass(instruction);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: GuestAddress = GuestAddress(0x1234);

    fn is_stepped(sites: &Sites) -> bool {
        let stepped = sites.stepped(GuestAddress(0x1000), 0x1000);
        assert!(stepped.iter().all(|&at| at == SITE));
        !stepped.is_empty()
    }

    #[test]
    fn who_faults_often_is_stepped_until_it_is_calm() {
        let mut sites = Sites::default();
        for fault in 1..=FAULTS {
            assert!(!is_stepped(&sites));
            assert_eq!(sites.note_fault(SITE), fault == FAULTS);
        }
        assert!(is_stepped(&sites) && sites.knows(SITE));
        assert!(sites.stepped(GuestAddress(0x1235), 0x1000).is_empty());
        assert!(sites.stepped(GuestAddress(0x1000), 0x234).is_empty());
        for _ in 1..CALM_STEPS {
            assert!(!sites.note_step(SITE, false));
        }
        // One trap, and all of it is to be calm again.
        assert!(!sites.note_step(SITE, true));
        for step in 1..=CALM_STEPS {
            assert!(is_stepped(&sites));
            assert_eq!(sites.note_step(SITE, false), step == CALM_STEPS);
        }
        assert!(!is_stepped(&sites) && !sites.knows(SITE));
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

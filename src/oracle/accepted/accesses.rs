//! Where the culprit of a divergence accesses memory, computed from the state before it.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, Register};

use super::super::localise::{Culprit, Divergence};
use crate::guest::{GuestAddress, State};

/// One memory access of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) kind: OpAccess,
}

impl Access {
    pub(super) fn writes(self) -> bool {
        matches!(
            self.kind,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    }

    pub(super) fn reads_and_writes(self) -> bool {
        matches!(self.kind, OpAccess::ReadWrite | OpAccess::ReadCondWrite)
    }

    pub(super) fn crosses_page(self) -> bool {
        let last = self.address.wrapping_add(self.size.max(1) - 1);
        GuestAddress(self.address).page_start() != GuestAddress(last).page_start()
    }

    /// Whether an access of `size` bytes would cross a page.
    pub(super) fn would_cross_page(self, size: u64) -> bool {
        Self { size, ..self }.crosses_page()
    }

    pub(super) fn is_canonical(self) -> bool {
        is_canonical(self.address) && is_canonical(self.address.wrapping_add(self.size.max(1) - 1))
    }
}

/// Whether an address is one of the lower or upper 2^47 (Intel SDM volume 1, section 3.3.7.1).
pub(super) fn is_canonical(address: u64) -> bool {
    let top = (address as i64) >> 47;
    top == 0 || top == -1
}

/// The accesses of the culprit, if it differs by itself: only then is the state before it known.
pub(super) fn accesses(divergence: &Divergence) -> Vec<Access> {
    match &divergence.culprit {
        Culprit::Instruction(instruction) => accesses_of(instruction, &divergence.case.state),
        Culprit::Sequence(_) | Culprit::Unknown => Vec::new(),
    }
}

fn accesses_of(instruction: &Instruction, state: &State) -> Vec<Access> {
    let mut factory = InstructionInfoFactory::new();
    let information = factory.info(instruction);
    information
        .used_memory()
        .iter()
        .filter_map(|memory| {
            let value = |register, _, _| value_of(register, state);
            let address = memory.virtual_address(0, value)?;
            let size = memory.memory_size().size() as u64;
            Some(Access { address, size, kind: memory.access() })
        })
        .collect()
}

/// What a register holds; of a segment register, its base.
fn value_of(register: Register, state: &State) -> Option<u64> {
    match register {
        Register::FS => return Some(state.fs_base),
        Register::GS => return Some(state.gs_base),
        _ if register.is_segment_register() => return Some(0),
        _ => {}
    }
    general_register(register, state)
}

/// What a general-purpose register, or part of one, holds.
pub(super) fn general_register(register: Register, state: &State) -> Option<u64> {
    if !register.is_gpr() {
        return None;
    }
    let whole = state.gpr[register.full_register().number()];
    if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
        return Some(whole >> 8 & 0xff);
    }
    Some(match register.size() {
        1 => whole & 0xff,
        2 => whole & 0xffff,
        4 => whole & 0xffff_ffff,
        _ => whole,
    })
}

/// Whether some access holds for `condition`.
pub(super) fn some_access(divergence: &Divergence, condition: fn(Access) -> bool) -> bool {
    accesses(divergence).into_iter().any(condition)
}

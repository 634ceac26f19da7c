//! The bounce: an instruction runs on a copy of its operand.
//!
//! For operands that translated code cannot reach: above the window, at an address whose base lies
//! outside of it, across its end. The copy lies in the vCPU's slot, two pages whose offset and
//! protection are those of the two guest pages that the operand lies in. So the processor itself
//! finds what is misaligned, masked out, or not allowed, in its own order.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register};

use super::access::{Access, page_fault};
use super::core::Core;
use super::exit::{Exit, vector};
use super::step::{Single, Undone, not_canonical};
use super::vcpu::{Vcpu, lost};
use crate::guest::{GuestAddress, PAGE_SIZE, Permissions};
use crate::translate::is_canonical;

const PAGE: usize = PAGE_SIZE as usize;

impl Vcpu {
    /// Runs the instruction at RIP on a copy of its operand.
    pub(super) fn bounce(
        &mut self,
        core: &mut Core,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let Some(address) = self.operand_address(instruction) else {
            return Err(lost("an instruction without an operand cannot bounce").into());
        };
        if saves_all(instruction) && !is_canonical(address) {
            return Err(not_canonical(instruction).into());
        }
        let size = instruction.memory_size().size().max(1);
        let start = (address % PAGE_SIZE) as usize;
        let (operand, rights) = self.fill_slot(core, GuestAddress(address), size)?;
        let pointer = self.memory.block().xsave_data_pointer();
        match self.run_single(core, instruction, Some(start as u32)) {
            Single::Done => {}
            Single::None => return Err(lost("an instruction without a translation").into()),
            Single::Fault(fault) if fault.vector == vector::PF => {
                let place = fault.address.wrapping_sub(self.memory.slot_address());
                let faulting = GuestAddress(address.wrapping_sub(start as u64)).wrapping_add(place);
                if !is_canonical(faulting.0) {
                    return Err(not_canonical(instruction).into());
                }
                let write = fault.error >> 1 & 1 != 0;
                let access = if write { Access::Write } else { Access::Read };
                return Err(page_fault(core, faulting, access).into());
            }
            // Alignment is checked only where there is memory at all.
            Single::Fault(fault) if fault.vector == vector::AC && !is_canonical(address) => {
                return Err(not_canonical(instruction).into());
            }
            Single::Fault(fault) => {
                let (vector, error) = (fault.vector, fault.error);
                return Err(Exit::Exception { vector, error, address: None }.into());
            }
        }
        self.fix_data_pointer(pointer, instruction, address);
        if writes(instruction) {
            self.store_slot(core, GuestAddress(address), &operand, rights);
        }
        Ok(())
    }

    /// Copies what is readable of an operand to the slot and protects the slot as the guest's pages
    /// are. Gives the bytes and the rights of both pages.
    fn fill_slot(
        &mut self,
        core: &Core,
        address: GuestAddress,
        size: usize,
    ) -> Result<(Vec<u8>, [Permissions; 2]), Exit> {
        let first = address.page_start();
        let rights = [first, first.wrapping_add(PAGE_SIZE)].map(|page| {
            let rights = core.memory.permissions_at(page).filter(|_| is_canonical(page.0));
            rights.unwrap_or(Permissions::None)
        });
        let start = (address.0 - first.0) as usize;
        let mut operand = vec![0; size];
        let split = size.min(PAGE - start);
        for (part, page) in [(0..split, 0), (split..size, 1)] {
            if !part.is_empty() && rights[page].read() {
                let from = address.wrapping_add(part.start as u64);
                let read = core.memory.read(from, &mut operand[part]);
                read.map_err(|error| page_fault(core, error.address, Access::Read))?;
            }
        }
        let accessible = [Permissions::ReadWrite; 2];
        let protected = self.memory.protect_slot(accessible).and_then(|()| {
            self.memory.block_mut().slot.0[start..start + size].copy_from_slice(&operand);
            self.memory.protect_slot(rights)
        });
        protected.map_err(|error| Exit::Host { what: format!("the slot's protection: {error}") })?;
        Ok((operand, rights))
    }

    /// Stores what the instruction left in the slot, where the guest may write.
    fn store_slot(
        &mut self,
        core: &mut Core,
        address: GuestAddress,
        before: &[u8],
        rights: [Permissions; 2],
    ) {
        let start = (address.0 % PAGE_SIZE) as usize;
        let split = before.len().min(PAGE - start);
        for (part, page) in [(0..split, 0), (split..before.len(), 1)] {
            if part.is_empty() || !rights[page].write() {
                continue;
            }
            let now = self.memory.block().slot.0[start + part.start..start + part.end].to_vec();
            if now != before[part.clone()] {
                let to = address.wrapping_add(part.start as u64);
                core.write(to, &now).expect("a page that may be written is mapped");
            }
        }
    }

    /// The x87 unit notes the address of its last operand: after a bounce that is the slot's.
    fn fix_data_pointer(&mut self, before: u64, instruction: &Instruction, linear: u64) {
        let slot = self.memory.slot_address();
        let block = self.memory.block_mut();
        let now = block.xsave_data_pointer();
        if now != before && now.wrapping_sub(slot) < block.slot.0.len() as u64 {
            // The pointer is an offset in the segment.
            let base = match instruction.memory_segment() {
                Register::FS => block.fs_base,
                Register::GS => block.gs_base,
                _ => 0,
            };
            block.set_xsave_data_pointer(linear.wrapping_sub(base));
        }
    }
}

/// FXSAVE and FXRSTOR look at their alignment after everything else.
fn saves_all(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instruction.mnemonic(), M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64)
}

/// Whether an instruction may write to its memory operand.
fn writes(instruction: &Instruction) -> bool {
    let mut information = InstructionInfoFactory::new();
    let used = information.info(instruction).used_memory();
    used.iter().any(|used| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead))
}

//! The bounce: an instruction runs on a copy of its operand.
//!
//! For operands that translated code cannot reach: above the window, at an address whose base lies
//! outside of it, across its end. The copy lies in the vCPU's slot, two pages whose offset and
//! protection are those of the two guest pages that the operand lies in. So the processor itself
//! finds what is misaligned, masked out, or not allowed, in its own order.

use std::ops::Range;

use iced_x86::{Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, Register};

use super::access::{Access, page_fault};
use super::core::Core;
use super::exit::{Exit, vector};
use super::shared::Locked;
use super::step::{Single, Undone, not_canonical};
use super::vcpu::{Fault, Vcpu, lost};
use crate::guest::{GuestAddress, PAGE_SIZE, Permissions, Vendor, memory_bytes};
use crate::translate::is_canonical;

const PAGE: usize = PAGE_SIZE as usize;

/// A memory operand that is somewhere else than translated code can reach.
pub(super) struct Operand<'a> {
    pub(super) instruction: &'a Instruction,
    pub(super) address: GuestAddress,
    /// Bytes.
    pub(super) size: usize,
}

impl Operand<'_> {
    /// Its place in the slot.
    pub(super) fn start(&self) -> usize {
        (self.address.0 % PAGE_SIZE) as usize
    }

    /// Which of its bytes are in its first page and in its second, with what the guest may do there; a
    /// page that it does not reach is left out.
    pub(super) fn parts(
        &self,
        rights: [Permissions; 2],
    ) -> impl Iterator<Item = (Range<usize>, Permissions)> + use<> {
        let split = self.size.min(PAGE - self.start());
        let parts = [(0..split, rights[0]), (split..self.size, rights[1])];
        parts.into_iter().filter(|(part, _)| !part.is_empty())
    }

    /// The address of one of its bytes.
    pub(super) fn at(&self, index: usize) -> GuestAddress {
        self.address.wrapping_add(index as u64)
    }
}

/// What an instruction may change of a vCPU, apart from memory.
pub(super) struct Registers {
    pub(super) pc: GuestAddress,
    gpr: [u64; 16],
    rflags: u64,
    xsave: Box<[u8]>,
}

impl Vcpu {
    /// Runs the instruction at RIP on a copy of its operand.
    pub(super) fn bounce(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let Some(address) = self.operand_address(instruction) else {
            return Err(lost("an instruction without an operand cannot bounce").into());
        };
        if saves_all(instruction) && !is_canonical(address) {
            return Err(not_canonical(instruction).into());
        }
        let size = memory_bytes(instruction).max(1);
        self.bounce_with(core, instruction, size, |_| ())
    }

    /// The same for an operand of `size` bytes, with `finish` applied to the copy before it is stored.
    pub(super) fn bounce_with(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
        size: usize,
        mut finish: impl FnMut(&mut [u8]),
    ) -> Result<(), Undone> {
        let address = GuestAddress(self.operand_address(instruction).unwrap_or_default());
        let operand = Operand { instruction, address, size };
        if core.observes(address, size) {
            return self.bounce_observed(core, &operand, finish);
        }
        if is_atomic(instruction) {
            // Between the copy and the store nobody else may change the operand, by whatever alias.
            core.stop_others();
        }
        let start = operand.start();
        let (before, rights) = self.fill_slot(core, &operand)?;
        let pointer = self.memory.block().xsave_data_pointer();
        if let Some(fault) = self.try_on_slot(core, &operand)? {
            if fault.vector == vector::PF && self.reaches_beyond(core, &operand, fault)? {
                return Err(not_canonical(instruction).into());
            }
            return Err(self.bounce_fault(core, &operand, fault).into());
        }
        self.fix_data_pointer(pointer, instruction, address.0);
        self.open_slot(start, size)?;
        finish(&mut self.memory.block_mut().slot.0[start..start + size]);
        if writes(instruction) {
            self.store_slot(core, &operand, &before, rights);
        }
        Ok(())
    }

    /// Whether a masked instruction, which faulted in the first page of its slot, uses a part of its
    /// operand that is not canonical, which comes first: tries it with that page accessible.
    fn reaches_beyond(
        &mut self,
        core: &mut Core,
        operand: &Operand<'_>,
        fault: Fault,
    ) -> Result<bool, Exit> {
        let (instruction, address) = (operand.instruction, operand.address);
        let last = address.0.wrapping_add(instruction.memory_size().size() as u64).wrapping_sub(1);
        if !is_masked(instruction) || !is_canonical(address.0) || is_canonical(last) {
            return Ok(false);
        }
        if Vendor::of_this_host() == Vendor::Amd {
            // AMD's processors take one element after the other.
            let place = fault.address.wrapping_sub(self.memory.slot_address());
            let element = address.page_start().wrapping_add(place);
            let size = instruction.memory_size().element_size() as u64;
            let last = element.0.wrapping_add(size).wrapping_sub(1);
            if is_canonical(last) && self.suppresses_faults(core, operand)? {
                return Ok(false);
            }
        }
        let before = self.registers();
        let start = operand.start();
        self.load_slot(start, &[], [Permissions::ReadWrite, Permissions::None])?;
        let tried = self.try_on_slot(core, operand);
        self.set_registers(&before);
        Ok(tried?.is_some())
    }

    /// Whether an instruction leaves what is masked of its operand alone, and does not just keep what it
    /// computes of it to itself: tries it with nothing but masked elements.
    fn suppresses_faults(&mut self, core: &mut Core, operand: &Operand<'_>) -> Result<bool, Exit> {
        if !operand.instruction.has_op_mask() {
            return Ok(true);
        }
        let before = self.registers();
        let mut state = self.state();
        state.opmask[operand.instruction.op_mask().number()] = 0;
        self.set_state(&state);
        self.load_slot(operand.start(), &[], [Permissions::None; 2])?;
        let tried = self.try_on_slot(core, operand);
        self.set_registers(&before);
        Ok(tried?.is_none())
    }

    /// Runs the instruction at RIP on what is in the slot; the fault that it ends by, if it does.
    pub(super) fn try_on_slot(
        &mut self,
        core: &mut Core,
        operand: &Operand<'_>,
    ) -> Result<Option<Fault>, Exit> {
        match self.run_single(core, operand.instruction, Some(operand.start() as u32)) {
            Single::Done => Ok(None),
            Single::Fault(fault) => Ok(Some(fault)),
            Single::None => Err(lost("an instruction without a translation")),
        }
    }

    /// The registers that an instruction may change, …
    pub(super) fn registers(&self) -> Registers {
        let block = self.memory.block();
        Registers { pc: self.pc, gpr: block.gpr, rflags: block.rflags, xsave: block.xsave.0.into() }
    }

    /// … put back.
    pub(super) fn set_registers(&mut self, registers: &Registers) {
        self.pc = registers.pc;
        let block = self.memory.block_mut();
        (block.gpr, block.rflags) = (registers.gpr, registers.rflags);
        block.xsave.0.copy_from_slice(&registers.xsave);
    }

    /// What a fault of an instruction on the slot is to the guest.
    pub(super) fn bounce_fault(&self, core: &Core, operand: &Operand<'_>, fault: Fault) -> Exit {
        let (instruction, address) = (operand.instruction, operand.address);
        match fault.vector {
            vector::PF => {
                let place = fault.address.wrapping_sub(self.memory.slot_address());
                let faulting = address.page_start().wrapping_add(place);
                let last = address.wrapping_add(first_piece(instruction)).0.wrapping_sub(1);
                let whole = is_canonical(last) || is_masked(instruction);
                if !is_canonical(faulting.0) || !whole {
                    return not_canonical(instruction);
                }
                let write = fault.error >> 1 & 1 != 0;
                let access = if write { Access::Write } else { Access::Read };
                page_fault(core, faulting, access)
            }
            // Alignment is checked only where there is memory at all.
            vector::AC if !is_canonical(address.0) => not_canonical(instruction),
            vector => Exit::Exception { vector, error: fault.error, address: None },
        }
    }

    /// Copies what is readable of an operand to the slot and protects the slot as the guest's pages
    /// are. Gives the bytes and the rights of both pages.
    fn fill_slot(
        &mut self,
        core: &Core,
        operand: &Operand<'_>,
    ) -> Result<(Vec<u8>, [Permissions; 2]), Exit> {
        let rights = slot_rights(core, operand.address);
        let mut bytes = vec![0; operand.size];
        for (part, _) in operand.parts(rights).filter(|(_, rights)| rights.read()) {
            let read = core.memory.read(operand.at(part.start), &mut bytes[part]);
            read.map_err(|error| page_fault(core, error.address, Access::Read))?;
        }
        self.load_slot(operand.start(), &bytes, rights)?;
        Ok((bytes, rights))
    }

    /// Copies bytes to `start` in the slot and protects it.
    pub(super) fn load_slot(
        &mut self,
        start: usize,
        operand: &[u8],
        rights: [Permissions; 2],
    ) -> Result<(), Exit> {
        self.open_slot(start, operand.len())?;
        self.memory.block_mut().slot.0[start..start + operand.len()].copy_from_slice(operand);
        self.memory.protect_slot(rights).map_err(|error| not_protected(&error))
    }

    /// Copies bytes from `start` in the slot, which it makes accessible.
    pub(super) fn read_slot(&mut self, start: usize, size: usize) -> Result<Vec<u8>, Exit> {
        self.open_slot(start, size)?;
        Ok(self.memory.block().slot.0[start..start + size].to_vec())
    }

    /// Makes `size` bytes from `start` in the slot accessible, to this process too. A page that none of
    /// them is in stays as it is: each change is a system call.
    fn open_slot(&mut self, start: usize, size: usize) -> Result<(), Exit> {
        let opened = self.memory.open_slot([size > 0, start + size > PAGE]);
        opened.map_err(|error| not_protected(&error))
    }

    /// Stores what the instruction left in the slot, where the guest may write. Of a masked store, just
    /// the bytes that have changed: the others may be another vCPU's by now.
    fn store_slot(
        &mut self,
        core: &mut Core,
        operand: &Operand<'_>,
        before: &[u8],
        rights: [Permissions; 2],
    ) {
        let now = &self.memory.block().slot.0[operand.start()..][..operand.size];
        let masked = leaves_parts(operand.instruction);
        let changed = |index: usize| !masked || now[index] != before[index];
        for (part, rights) in operand.parts(rights) {
            if !rights.write() || now[part.clone()] == before[part.clone()] {
                continue;
            }
            for part in runs(part, changed) {
                let written = core.write(operand.at(part.start), &now[part]);
                written.expect("a page that may be written is mapped");
            }
        }
    }

    /// The x87 unit notes the address of its last operand: after a bounce that is the slot's.
    pub(super) fn fix_data_pointer(&mut self, before: u64, instruction: &Instruction, linear: u64) {
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

fn not_protected(error: &std::io::Error) -> Exit {
    Exit::Host { what: format!("the slot's protection: {error}") }
}

/// Bytes of the part of an operand that an instruction accesses first; x87 instructions take longer
/// ones apart.
fn first_piece(instruction: &Instruction) -> u64 {
    let size = instruction.memory_size();
    match size {
        MemorySize::Float80 | MemorySize::Bcd => 8,
        MemorySize::FpuEnv28 | MemorySize::FpuState108 => 4,
        MemorySize::FpuEnv14 | MemorySize::FpuState94 => 2,
        // AMD's processors store 64 bytes in halves.
        _ if size.size() == 64 && writes(instruction) && Vendor::of_this_host() == Vendor::Amd => {
            32
        }
        _ => memory_bytes(instruction) as u64,
    }
}

/// The runs of indexes in `range` that are `wanted`.
pub(super) fn runs(range: Range<usize>, wanted: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for index in range.filter(|&index| wanted(index)) {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

/// Whether an instruction reads and writes its operand at once.
pub(super) fn is_atomic(instruction: &Instruction) -> bool {
    instruction.has_lock_prefix() || instruction.mnemonic() == Mnemonic::Xchg
}

/// Whether an instruction that stores may leave all or parts of its operand alone: by a mask; of x87, if
/// an exception that is not masked is put off to the next instruction (Intel SDM volume 1, section
/// 8.5); FXSAVE, which leaves the end of its area alone (volume 1, section 10.5.1).
pub(super) fn leaves_parts(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let stores = matches!(
        instruction.mnemonic(),
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp | M::Fxsave | M::Fxsave64
    );
    stores || is_masked(instruction)
}

/// Whether a mask decides which parts of its operand an instruction accesses.
fn is_masked(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.has_op_mask()
        || matches!(
            instruction.mnemonic(),
            M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
        )
}

/// FXSAVE and FXRSTOR look at their alignment after everything else.
fn saves_all(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instruction.mnemonic(), M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64)
}

/// What the guest may do with the two pages from the one of `address` on.
pub(super) fn slot_rights(core: &Core, address: GuestAddress) -> [Permissions; 2] {
    let first = address.page_start();
    [first, first.wrapping_add(PAGE_SIZE)].map(|page| {
        let rights = core.memory.permissions_at(page).filter(|_| is_canonical(page.0));
        rights.unwrap_or(Permissions::None)
    })
}

/// Whether an instruction may write to its memory operand.
fn writes(instruction: &Instruction) -> bool {
    let mut information = InstructionInfoFactory::new();
    let used = information.info(instruction).used_memory();
    used.iter().any(|used| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead))
}

//! String instructions, XLAT, MASKMOV, bit tests, MOV with an absolute address.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::exec::access::Access;
use crate::exec::exit::{Exit, vector};
use crate::exec::shared::Locked;
use crate::exec::step::{Undone, not_canonical};
use crate::exec::vcpu::Vcpu;
use crate::guest::{Flag, GuestAddress, Vendor, is_repeated_string};
use crate::translate::is_canonical;

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;
/// Iterations of a repeated instruction between two looks at requests to leave.
const MOST_ITERATIONS: u32 = 4096;

impl Vcpu {
    /// Executes a string instruction; one iteration if TF is set.
    pub(super) fn string(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let narrow = instruction
            .op_kinds()
            .any(|kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI));
        let mask = if narrow { 0xffff_ffff } else { u64::MAX };
        if !is_repeated_string(instruction) {
            self.iteration(core, instruction, mask)?;
            self.pass(instruction);
            return Ok(());
        }
        let (flags, amd) = (self.rflags(), Vendor::of_this_host() == Vendor::Amd);
        for _ in 0..MOST_ITERATIONS {
            let left = self.gpr(RCX) & mask;
            if left == 0 {
                self.narrow_unused(instruction, mask);
                self.pass(instruction);
                return Ok(());
            }
            // An interrupted comparison leaves the flags as they were before the first (Intel SDM
            // volume 2, "REP"); AMD's processors leave those of the last one that was done.
            let compared = self.iteration(core, instruction, mask).inspect_err(|_| {
                if !amd {
                    self.set_rflags(flags);
                }
                self.narrow_unused(instruction, mask);
            })?;
            self.set_gpr(RCX, (left - 1) & mask);
            let zero = self.rflags() & Flag::ZF.mask() != 0;
            let ended = compared && zero == instruction.has_repne_prefix();
            if left == 1 || ended {
                self.pass(instruction);
                return Ok(());
            }
            if self.trap {
                return Err(Undone::Again);
            }
        }
        if !amd {
            self.set_rflags(flags);
        }
        Err(Undone::Again)
    }

    /// What silicon does to the registers of a repeated instruction with 32-bit addresses whose count
    /// is zero, or that faults: the count loses its upper half, and so do the pointers of MOVS and STOS. AMD's
    /// leaves them alone.
    fn narrow_unused(&mut self, instruction: &Instruction, mask: u64) {
        use Mnemonic as M;
        if Vendor::of_this_host() == Vendor::Amd {
            return;
        }
        self.set_gpr(RCX, self.gpr(RCX) & mask);
        let moves = matches!(instruction.mnemonic(), M::Movsb | M::Movsw | M::Movsd | M::Movsq);
        let stores = matches!(instruction.mnemonic(), M::Stosb | M::Stosw | M::Stosd | M::Stosq);
        for (register, used) in [(RSI, moves), (RDI, moves || stores)] {
            if used {
                self.set_gpr(register, self.gpr(register) & mask);
            }
        }
    }

    /// One iteration; whether it compared.
    fn iteration(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
        mask: u64,
    ) -> Result<bool, Undone> {
        use Mnemonic as M;
        let (size, kind) = match instruction.mnemonic() {
            M::Movsb => (1, Kind::Move),
            M::Movsw => (2, Kind::Move),
            M::Movsd => (4, Kind::Move),
            M::Movsq => (8, Kind::Move),
            M::Stosb => (1, Kind::Store),
            M::Stosw => (2, Kind::Store),
            M::Stosd => (4, Kind::Store),
            M::Stosq => (8, Kind::Store),
            M::Lodsb => (1, Kind::Load),
            M::Lodsw => (2, Kind::Load),
            M::Lodsd => (4, Kind::Load),
            M::Lodsq => (8, Kind::Load),
            M::Scasb => (1, Kind::Scan),
            M::Scasw => (2, Kind::Scan),
            M::Scasd => (4, Kind::Scan),
            M::Scasq => (8, Kind::Scan),
            M::Cmpsb => (1, Kind::Compare),
            M::Cmpsw => (2, Kind::Compare),
            M::Cmpsd => (4, Kind::Compare),
            _ => (8, Kind::Compare),
        };
        let source =
            GuestAddress(self.segment_base(instruction).wrapping_add(self.gpr(RSI) & mask));
        let destination = GuestAddress(self.gpr(RDI) & mask);
        let accumulator = accumulator(size);
        let reads = matches!(kind, Kind::Move | Kind::Load | Kind::Compare);
        match kind {
            Kind::Move => {
                let value = self.load_word(core, source, size)?;
                self.store_word(core, destination, value, size)?;
            }
            Kind::Store => {
                self.store_word(core, destination, self.gpr(0), size)?;
            }
            Kind::Load => {
                let value = self.load_word(core, source, size)?;
                self.set_register(accumulator, value);
            }
            Kind::Scan => {
                let value = self.load_word(core, destination, size)?;
                self.compare_words(self.gpr(0), value, size);
            }
            Kind::Compare => {
                // Silicon looks at RDI's side first, AMD's at RSI's in one of the four.
                let amd = Vendor::of_this_host() == Vendor::Amd;
                let (left, right) = if amd && size == 1 && instruction.has_repe_prefix() {
                    let left = self.load_word(core, source, size)?;
                    (left, self.load_word(core, destination, size)?)
                } else {
                    let right = self.load_word(core, destination, size)?;
                    (self.load_word(core, source, size)?, right)
                };
                self.compare_words(left, right, size);
            }
        }
        let back = self.rflags() & Flag::DF.mask() != 0;
        let step = if back { (size as u64).wrapping_neg() } else { size as u64 };
        for (register, used) in [(RSI, reads), (RDI, kind != Kind::Load)] {
            if used {
                let moved = (self.gpr(register) & mask).wrapping_add(step) & mask;
                self.set_gpr(register, moved);
            }
        }
        Ok(matches!(kind, Kind::Scan | Kind::Compare))
    }

    /// Sets the flags of `left - right`.
    fn compare_words(&mut self, left: u64, right: u64, size: usize) {
        let bits = size * 8;
        let mask = u64::MAX >> (64 - bits);
        let (left, right) = (left & mask, right & mask);
        let result = left.wrapping_sub(right) & mask;
        let top = |value: u64| value >> (bits - 1) & 1 != 0;
        let flags = [
            (Flag::CF, left < right),
            (Flag::PF, (result as u8).count_ones().is_multiple_of(2)),
            (Flag::AF, (left ^ right ^ result) & 0x10 != 0),
            (Flag::ZF, result == 0),
            (Flag::SF, top(result)),
            (Flag::OF, top((left ^ right) & (left ^ result))),
        ];
        let rflags = flags.into_iter().fold(self.rflags(), |rflags, (flag, set)| {
            if set { rflags | flag.mask() } else { rflags & !flag.mask() }
        });
        self.set_rflags(rflags);
    }

    /// Base of the segment that an overridable operand is in.
    fn segment_base(&self, instruction: &Instruction) -> u64 {
        self.register_value(instruction.segment_prefix()).unwrap_or(0)
    }

    pub(super) fn table(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let mask = if instruction.memory_base() == Register::EBX { 0xffff_ffff } else { u64::MAX };
        let offset = self.gpr(3).wrapping_add(self.gpr(0) & 0xff) & mask;
        let address = self.segment_base(instruction).wrapping_add(offset);
        if !is_canonical(address) {
            return Err(Exit::general_protection().into());
        }
        let value = self.load_word(core, GuestAddress(address), 1)?;
        self.set_register(Register::AL, value);
        self.pass(instruction);
        Ok(())
    }

    /// Writes the bytes whose mask byte has its sign bit.
    pub(super) fn mask_move(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let narrow = instruction.op_kinds().any(|kind| kind == OpKind::MemorySegEDI);
        let mask = if narrow { 0xffff_ffff } else { u64::MAX };
        let (base, offset) = (self.segment_base(instruction), self.gpr(RDI));
        let byte = |index: usize| {
            GuestAddress(base.wrapping_add(offset.wrapping_add(index as u64) & mask))
        };
        if instruction.op1_register().is_mm() {
            if self.state().x87.is_pending() {
                return Err(Exit::exception(vector::MF).into());
            }
            self.enter_mmx();
        }
        let bytes = |register: Register| -> Vec<u8> {
            if register.is_mm() {
                self.state().x87.st[register.number()].significand.to_le_bytes().to_vec()
            } else {
                let words = self.vector(register.number());
                words[..2].iter().flat_map(|word| word.to_le_bytes()).collect()
            }
        };
        let (data, control) =
            (bytes(instruction.op1_register()), bytes(instruction.op2_register()));
        let wanted: Vec<usize> =
            (0..data.len()).filter(|&index| control[index] & 0x80 != 0).collect();
        if !is_canonical(byte(0).0) {
            return Err(Exit::general_protection().into());
        }
        // Silicon checks halves of eight bytes, the upper first, AMD's the lower, whatever the mask says.
        let amd = Vendor::of_this_host() == Vendor::Amd;
        for half in (0..data.len()).step_by(8).rev() {
            let place = byte(if amd { data.len() - 8 - half } else { half });
            self.check_alignment(place, 8)?;
            self.check(core, place, 8, Access::Write)?;
        }
        for index in wanted {
            self.store(core, byte(index), &data[index..=index])?;
        }
        self.pass(instruction);
        Ok(())
    }

    /// What every MMX instruction does to the x87 unit: all registers are in use and ST(0) is the first
    /// (Intel SDM volume 1, section 9.5.1).
    fn enter_mmx(&mut self) {
        let mut state = self.state();
        let top = state.x87.top();
        state.x87.st.rotate_right(top);
        state.x87.status &= !(7 << 11);
        state.x87.tag = 0xff;
        self.set_state(&state);
    }

    /// BT, BTS, BTR, BTC with the number of the bit in a register.
    pub(super) fn bit_string(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let register = instruction.op1_register();
        let size = register.size();
        let bits = size as u32 * 8;
        let number = self.register_value(register).unwrap_or_default();
        let signed = (number << (64 - bits)) as i64 >> (64 - bits);
        let bit = 1 << (number & u64::from(bits - 1));
        let new = |word: u64| match instruction.mnemonic() {
            Mnemonic::Bts => word | bit,
            Mnemonic::Btr => word & !bit,
            Mnemonic::Btc => word ^ bit,
            _ => word,
        };
        let only_tests = instruction.mnemonic() == Mnemonic::Bt;
        let word = if instruction.op0_kind() == OpKind::Register {
            let word = self.register_value(instruction.op0_register()).unwrap_or_default();
            if !only_tests {
                self.set_register(instruction.op0_register(), new(word));
            }
            word
        } else {
            let operand = self.operand_address(instruction).unwrap_or_default();
            let distance = (signed >> bits.trailing_zeros()).wrapping_mul(size as i64);
            let base = self.segment_base_of_operand(instruction);
            let offset = operand.wrapping_sub(base).wrapping_add(distance as u64);
            let offset =
                if has_narrow_address(instruction) { offset & 0xffff_ffff } else { offset };
            let address = GuestAddress(base.wrapping_add(offset));
            if !is_canonical(address.0) {
                return Err(not_canonical(instruction).into());
            }
            if only_tests {
                self.load_word(core, address, size)?
            } else {
                let locked = instruction.has_lock_prefix();
                self.update_word(core, (address, size), locked, new)?
            }
        };
        let carry = if word & bit != 0 { Flag::CF.mask() } else { 0 };
        self.set_rflags(self.rflags() & !Flag::CF.mask() | carry);
        self.pass(instruction);
        Ok(())
    }

    fn segment_base_of_operand(&self, instruction: &Instruction) -> u64 {
        self.register_value(instruction.memory_segment()).unwrap_or(0)
    }

    /// MOV between the accumulator and an absolute address.
    pub(super) fn absolute(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let loads = instruction.op0_kind() == OpKind::Register;
        let register = if loads { instruction.op0_register() } else { instruction.op1_register() };
        let address = self.canonical_operand(instruction)?;
        if loads {
            let value = self.load_word(core, address, register.size())?;
            self.set_register(register, value);
        } else {
            self.store_word(core, address, self.gpr(0), register.size())?;
        }
        self.pass(instruction);
        Ok(())
    }
}

/// Whether the address of the memory operand is computed in 32 bits.
fn has_narrow_address(instruction: &Instruction) -> bool {
    match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, Register::None) => instruction.memory_displ_size() == 4,
        (base, index) => base == Register::EIP || base.is_gpr32() || index.is_gpr32(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Scan,
    Compare,
}

fn accumulator(size: usize) -> Register {
    match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

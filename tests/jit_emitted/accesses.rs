//! The part of the checker that judges memory operands and follows what instructions do to values.

use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpKind, Register};
use tregion::translate::{Class, Purpose, class};

use crate::checker::{Checker, is_plain_slot, writes};
use crate::fields;
use crate::strings::{RDI, RSI, is_relocation};
use crate::symbolic::{Form, Origin};

/// Room at the window's end for an operand that begins in it.
const OPERAND: u64 = 4096;

impl Checker<'_> {
    /// All memory that an instruction accesses, whether it says so or not.
    pub(crate) fn memory(&mut self, index: usize, instruction: &Instruction) {
        if matches!(instruction.code(), Code::Pushfq | Code::Popfq | Code::Push_r64 | Code::Pop_r64)
        {
            // Just below the block, as `stack_pointer` has found.
            return;
        }
        let no_access = matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
        let mut named = 0;
        for operand in 0..instruction.op_count() {
            let kind = instruction.op_kind(operand);
            named += usize::from(is_memory(kind));
            match kind {
                _ if no_access => {}
                OpKind::Memory if is_in_block(instruction) => self.block_access(instruction),
                OpKind::Memory if self.is_poll(instruction) => self.state.polled = true,
                OpKind::Memory if is_note(instruction) => self.note(instruction),
                OpKind::Memory => self.window_operand(instruction),
                OpKind::MemorySegRSI if self.is_relocated(index, RSI) => {
                    self.relocated_string(index, instruction, RSI);
                }
                OpKind::MemorySegRSI => self.window_register(instruction, RSI),
                OpKind::MemorySegRDI => self.window_register(instruction, RDI),
                OpKind::MemoryESRDI => self.relocated_string(index, instruction, RDI),
                kind if is_memory(kind) => self.complain(instruction, "a narrow string address"),
                _ => {}
            }
        }
        let used = self.information.info(instruction).used_memory();
        let accessed = used.iter().filter(|used| used.access() != OpAccess::NoMemAccess).count();
        if accessed > named && !no_access {
            self.complain(instruction, "an access without an operand");
        }
    }

    fn block_access(&mut self, instruction: &Instruction) {
        self.figures.block_accesses += 1;
        let offset = instruction.memory_displacement64() as i64;
        let bytes = instruction.memory_size().size();
        let used = self.information.info(instruction).used_memory();
        let access = used.first().map_or(OpAccess::ReadWrite, |used| used.access());
        let index = instruction.memory_index();
        if index == Register::None {
            if offset == i64::from(fields::RECORD) && writes(access) {
                self.end_of_note(instruction);
            }
            if !fields::allowed(offset, bytes, writes(access)) {
                self.complain(instruction, "not a word of the block that code may use so");
            }
            return;
        }
        let form = &self.state.registers[index.full_register().number()];
        let low = matches!(self.symbols.origin_of(form), Some(Origin::Low16(_)));
        let tables = [self.shape.base, fields::JUMP_TAGS].map(i64::from);
        let fits = index.is_gpr64() && instruction.memory_index_scale() == 8 && low;
        if !fits || !tables.contains(&offset) || writes(access) || bytes > 8 {
            self.complain(instruction, "an access beside the tables of the block");
        }
    }

    fn is_poll(&self, instruction: &Instruction) -> bool {
        let form = &self.state.registers[14];
        instruction.code() == Code::Mov_r32_rm32
            && instruction.op0_register() == Register::R14D
            && instruction.memory_base() == Register::R14
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64() == 0
            && !instruction.has_segment_prefix()
            && self.symbols.origin_of(form) == Some(&Origin::Slot(fields::POLL))
    }

    /// A constant goes to where the trace goes on, as R14 says.
    fn note(&mut self, instruction: &Instruction) {
        let (bytes, place) =
            (instruction.memory_size().size() as u64, self.state.registers[14].clone());
        let start = self.symbols.of(Origin::Slot(fields::RECORD));
        let notes = place.plus(&start, u64::MAX).as_constant();
        let half = instruction.memory_displacement64();
        let noted =
            if half == 0 { bytes } else { self.noted.take().map_or(0, |(_, noted)| noted + bytes) };
        if notes.is_none_or(|notes| !notes.is_multiple_of(8)) || half + bytes != noted || noted > 8
        {
            self.complain(instruction, "beside the trace");
        }
        self.noted = Some((place, noted));
    }

    /// The trace goes on behind a note that was just made, which faults where there is no room.
    fn end_of_note(&mut self, instruction: &Instruction) {
        let Some((place, 8)) = self.noted.take() else {
            return self.complain(instruction, "a trace goes on without a note");
        };
        let next = self.state.registers[14].plus(&place, u64::MAX).as_constant();
        if instruction.op1_register() != Register::R14 || next != Some(8) {
            self.complain(instruction, "a trace does not go on behind its note");
        }
        self.figures.notes += 1;
    }

    /// An operand in the window, which must be near a probed address.
    /// The side table says what a fault of an instruction means.
    fn purpose(&mut self, instruction: &Instruction, purpose: Purpose) {
        let entry = self.block.side_entry(instruction.ip() as u32);
        if entry.is_none_or(|entry| entry.recovery.purpose != purpose) {
            self.complain(instruction, format!("{purpose:?} by its look, not by the side table"));
        }
    }

    fn window_operand(&mut self, instruction: &Instruction) {
        self.figures.window_accesses += 1;
        self.purpose(instruction, Purpose::Instruction);
        if instruction.memory_segment() != Register::GS {
            return self.complain(instruction, "neither in the window nor in the block");
        }
        if class(instruction.code()) == Class::Hint {
            return;
        }
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if base.is_gpr32() || index.is_gpr32() {
            return;
        }
        if instruction.is_ip_rel_memory_operand() {
            return self.complain(instruction, "relative to host code");
        }
        let address = if instruction.mnemonic() == Mnemonic::Xlatb {
            self.state.registers[3].clone()
        } else {
            self.address(instruction)
        };
        self.covered(instruction, &address);
        if surely_accesses(instruction) {
            self.state.note(address);
        }
    }

    fn window_register(&mut self, instruction: &Instruction, register: usize) {
        self.figures.window_accesses += 1;
        if instruction.memory_segment() != Register::GS {
            return self.complain(instruction, "neither in the window nor in the block");
        }
        let address = self.state.registers[register].clone();
        self.covered(instruction, &address);
    }

    pub(crate) fn covered(&mut self, instruction: &Instruction, address: &Form) {
        let end = (1 << self.window_bits) + OPERAND;
        if address.as_constant().is_some_and(|constant| constant < end) {
            return;
        }
        match self.state.distance(address, self.window_bits, &self.symbols) {
            None => self.complain(instruction, "not probed"),
            Some(distance) if distance > crate::checker::MOST_DISTANCE => {
                self.complain(instruction, format!("{distance:#x} bytes from what was probed"));
            }
            Some(_) => {}
        }
    }

    /// The address of an operand of 64-bit registers. For a bit string that of the bit's word.
    fn address(&mut self, instruction: &Instruction) -> Form {
        let operand = self.operand_form(instruction);
        let bits = matches!(
            instruction.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        );
        if !bits || instruction.op1_kind() != OpKind::Register {
            return operand;
        }
        let register = instruction.op1_register();
        let number = self.state.registers[register.full_register().number()].clone();
        let (signed, shift) = match register.size() {
            8 => (number, 6),
            4 => (self.symbols.of(Origin::Signed(number, 32)), 5),
            _ => (self.symbols.of(Origin::Signed(number, 16)), 4),
        };
        let word = self.symbols.of(Origin::Shifted(signed, shift));
        operand.plus(&word, register.size() as u64)
    }

    /// Base, index and displacement.
    fn operand_form(&self, instruction: &Instruction) -> Form {
        let mut sum = Form::constant(instruction.memory_displacement64());
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if base.is_gpr() {
            sum = sum.plus(&self.state.registers[base.number()], 1);
        }
        if index.is_gpr() {
            let scale = u64::from(instruction.memory_index_scale());
            sum = sum.plus(&self.state.registers[index.number()], scale);
        }
        sum
    }

    /// What an instruction does to the values that are known.
    pub(crate) fn follow(&mut self, instruction: &Instruction) {
        if self.probe(instruction) {
            return;
        }
        if self.stored(instruction) {
            return;
        }
        let known = self.result(instruction);
        let string = instruction.op_kinds().any(|kind| kind == OpKind::MemoryESRDI);
        let narrow = self.zero_extended(instruction);
        let used = self.information.info(instruction).used_registers().to_vec();
        for used in used.iter().filter(|used| used.register().is_gpr() && writes(used.access())) {
            let number = used.register().full_register().number();
            self.state.registers[number] = match &known {
                Some(form) => form.clone(),
                None if Some(number) == narrow => self.symbols.between(0, u32::MAX.into()),
                None if string && self.is_host(&self.state.registers[number]) => {
                    self.symbols.relocated()
                }
                None => self.symbols.unknown(),
            };
        }
        self.forget_slots(instruction);
    }

    /// The register whose upper half an instruction clears. Some do not always write (BSF of zero), and
    /// shifts by nothing may not either.
    fn zero_extended(&mut self, instruction: &Instruction) -> Option<usize> {
        use Mnemonic as M;
        let register = instruction.op0_register();
        let access = self.information.info(instruction).op_access(0);
        let sure = matches!(access, OpAccess::Write | OpAccess::ReadWrite)
            && (access == OpAccess::Write || instruction.op1_register() != Register::CL)
            && !matches!(instruction.mnemonic(), M::Bsf | M::Bsr | M::Shld | M::Shrd);
        let narrow = instruction.op0_kind() == OpKind::Register && register.is_gpr32();
        (narrow && sure).then(|| register.number())
    }

    /// A load from the probe page, which tells that an address is in the window.
    fn probe(&mut self, instruction: &Instruction) -> bool {
        let index = instruction.memory_index();
        let load = instruction.code() == Code::Mov_r32_rm32
            && instruction.op1_kind() == OpKind::Memory
            && is_in_block(instruction)
            && index.is_gpr64()
            && instruction.memory_index_scale() == 8
            && instruction.memory_displacement64() as i64 == i64::from(self.shape.base);
        if !load {
            return false;
        }
        let form = self.state.registers[index.number()].clone();
        if let Some(Origin::Low16(rotated)) = self.symbols.origin_of(&form)
            && let Some(Origin::Rotated(address, shift)) = self.symbols.origin_of(rotated)
            && *shift == self.shape.shift
        {
            self.figures.probes += 1;
            let address = address.clone();
            self.state.note(address);
            self.purpose(instruction, Purpose::Probe);
        }
        let scratch = instruction.op0_register().full_register().number();
        self.state.registers[scratch] = self.symbols.unknown();
        true
    }

    fn stored(&mut self, instruction: &Instruction) -> bool {
        let store = instruction.code() == Code::Mov_rm64_r64 && is_plain_slot(instruction);
        if store {
            let offset = instruction.memory_displacement64() as i32;
            let value = self.state.registers[instruction.op1_register().number()].clone();
            self.state.slots.insert(offset, value);
        }
        store
    }

    /// A store to the block of any other kind.
    fn forget_slots(&mut self, instruction: &Instruction) {
        let used = self.information.info(instruction).used_memory();
        if !is_plain_slot(instruction) || !used.iter().any(|used| writes(used.access())) {
            return;
        }
        let start = instruction.memory_displacement64() as i32;
        let end = start + instruction.memory_size().size() as i32;
        let touched: Vec<i32> = (start - 7..end).filter(|offset| offset % 8 == 0).collect();
        for offset in touched {
            let unknown = self.symbols.unknown();
            self.state.slots.insert(offset, unknown);
        }
    }

    /// The value of the one register that an instruction writes, if it is one of those understood.
    fn result(&mut self, instruction: &Instruction) -> Option<Form> {
        let register =
            instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_gpr();
        let of =
            |register: Register| self.state.registers[register.full_register().number()].clone();
        let source =
            || (instruction.op1_kind() == OpKind::Register).then(|| of(instruction.op1_register()));
        if !register {
            return None;
        }
        let own = of(instruction.op0_register());
        Some(match instruction.code() {
            Code::Mov_r64_rm64 if is_plain_slot(instruction) => {
                let offset = instruction.memory_displacement64() as i32;
                self.state.slot(offset, &mut self.symbols)
            }
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64 => source()?,
            Code::Mov_r64_imm64
            | Code::Mov_rm64_imm32
            | Code::Mov_r32_imm32
            | Code::Mov_rm32_imm32 => Form::constant(instruction.immediate(1)),
            Code::Lea_r64_m => return self.effective_address(instruction),
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 => {
                own.plus_constant(instruction.immediate(1))
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 => {
                own.plus_constant(instruction.immediate(1).wrapping_neg())
            }
            Code::Inc_rm64 => own.plus_constant(1),
            Code::Dec_rm64 => own.plus_constant(u64::MAX),
            Code::VEX_Rorx_r64_rm64_imm8 => {
                let shift = instruction.immediate8();
                let rotated = source()?;
                self.symbols.of(Origin::Rotated(rotated, shift))
            }
            Code::Movzx_r32_rm16 => {
                let value = source()?;
                self.symbols.of(Origin::Low16(value))
            }
            Code::Movsx_r64_rm16 => match source() {
                Some(value) => self.symbols.of(Origin::Signed(value, 16)),
                None => self.symbols.between(i16::MIN.into(), i16::MAX.into()),
            },
            Code::Movsxd_r64_rm32 => match source() {
                Some(value) => self.symbols.of(Origin::Signed(value, 32)),
                None => self.symbols.between(i32::MIN.into(), i32::MAX.into()),
            },
            Code::Movsx_r64_rm8 => self.symbols.between(i8::MIN.into(), i8::MAX.into()),
            Code::Movzx_r64_rm16 => self.symbols.between(0, u16::MAX.into()),
            Code::Movzx_r64_rm8 => self.symbols.between(0, u8::MAX.into()),
            Code::Popcnt_r64_rm64 | Code::Lzcnt_r64_rm64 | Code::Tzcnt_r64_rm64 => {
                self.symbols.between(0, 64)
            }
            Code::And_rm64_imm8 | Code::And_rm64_imm32 | Code::And_RAX_imm32
                if instruction.immediate(1) as i64 >= 0 =>
            {
                self.symbols.between(0, instruction.immediate(1) as i64)
            }
            Code::Shr_rm64_imm8 if instruction.immediate8() & 63 >= 32 => {
                self.symbols.between(0, u32::MAX.into())
            }
            Code::Add_RAX_imm32 => own.plus_constant(instruction.immediate(1)),
            Code::Sub_RAX_imm32 => own.plus_constant(instruction.immediate(1).wrapping_neg()),
            Code::VEX_Sarx_r64_rm64_r64 => {
                let shift = of(instruction.op2_register()).as_constant()?;
                let value = source()?;
                self.symbols.of(Origin::Shifted(value, shift as u8))
            }
            _ => return None,
        })
    }

    fn effective_address(&mut self, instruction: &Instruction) -> Option<Form> {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let wide = |register: Register| register == Register::None || register.is_gpr64();
        if !wide(base) || !wide(index) || instruction.is_ip_rel_memory_operand() {
            return None;
        }
        let moved_back = is_relocation(instruction)
            && self.symbols.origin_of(&self.state.registers[14])
                == Some(&Origin::Slot(fields::MINUS_WINDOW));
        if moved_back {
            return Some(self.symbols.unknown());
        }
        Some(self.operand_form(instruction))
    }
}

/// `[rsp + …]`, which is never a guest's address.
fn is_in_block(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::RSP
        && !matches!(instruction.memory_segment(), Register::FS | Register::GS)
}

/// Whether an instruction that does not fault has accessed all of its operand. Under a mask it may
/// not have, and an x87 store whose exception is not masked stores nothing and faults later (Intel
/// SDM volume 1, section 8.5.1.1).
fn surely_accesses(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let under_mask = instruction.has_op_mask()
        || matches!(
            instruction.mnemonic(),
            M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
        );
    let x87_store = matches!(
        instruction.mnemonic(),
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp
    );
    !under_mask && !x87_store && instruction.mnemonic() != M::Xlatb
}

/// Whether an operand kind is memory.
fn is_memory(kind: OpKind) -> bool {
    use OpKind as K;
    matches!(
        kind,
        K::Memory
            | K::MemorySegSI
            | K::MemorySegESI
            | K::MemorySegRSI
            | K::MemorySegDI
            | K::MemorySegEDI
            | K::MemorySegRDI
            | K::MemoryESDI
            | K::MemoryESEDI
            | K::MemoryESRDI
    )
}

/// `mov [r14 + constant], constant`, which guests' instructions never become.
pub(crate) fn is_note(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Mov_rm32_imm32 | Code::Mov_rm64_imm32)
        && instruction.op0_kind() == OpKind::Memory
        && instruction.memory_base() == Register::R14
        && instruction.memory_index() == Register::None
        && !instruction.has_segment_prefix()
}

/// A store to the word that says where the trace goes on; what is before it computes that.
pub(crate) fn is_end_of_note(instruction: Option<&Instruction>) -> bool {
    instruction.is_some_and(|store| {
        store.code() == Code::Mov_rm64_r64
            && is_plain_slot(store)
            && store.memory_displacement64() == fields::RECORD as u64
    })
}

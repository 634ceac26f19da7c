//! What a block knows of the guest registers that hold addresses: [`Probed`], and how each instruction
//! changes it.

use iced_x86::{Code, CpuidFeature, Instruction, OpAccess, OpKind};

use super::Translator;
use super::operand::{Homes, has_memory, near_base, number, rename_registers};

/// Which guest registers hold addresses that were probed in this block, and how far they have moved
/// since. The guards take up far more than [`Self::MOST`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Probed {
    moved: [Option<i32>; 16],
}

impl Probed {
    const MOST: i32 = 1 << 30;

    pub(super) fn knows(&self, register: u8) -> bool {
        self.moved[usize::from(register)].is_some()
    }

    pub(super) fn note(&mut self, register: u8) {
        self.moved[usize::from(register)] = Some(0);
    }

    pub(super) fn forget(&mut self, register: u8) {
        self.moved[usize::from(register)] = None;
    }

    pub(super) fn forget_all(&mut self, registers: u16) {
        for register in 0..16 {
            if registers >> register & 1 != 0 {
                self.forget(register);
            }
        }
    }

    /// What of this is still true after code that leaves `after` true: registers that have not moved
    /// further than they may have at its start.
    pub(super) fn kept_by(&self, after: &Self) -> Self {
        let kept = |register: usize| {
            self.moved[register].filter(|_| after.moved[register] == self.moved[register])
        };
        Self { moved: std::array::from_fn(kept) }
    }

    /// `register` grew by `distance`.
    pub(super) fn moved(&mut self, register: u8, distance: i32) {
        let moved = &mut self.moved[usize::from(register)];
        *moved = moved
            .and_then(|before| before.checked_add(distance))
            .filter(|sum| sum.unsigned_abs() <= Self::MOST as u32);
    }
}

/// What an opcode writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writes {
    /// General-purpose registers that are no operand.
    implicit: u16,
    /// Operands, by a bit each.
    operands: u8,
}

impl Translator {
    /// An access that did not fault shows that its base is near the window, if it was made: vectors
    /// may be masked out, and an x87 store with an unmasked exception does nothing and does not fault
    /// either. So only instructions that cannot but access their operand count.
    pub(super) fn note_access(&mut self, instruction: &Instruction) {
        use CpuidFeature as F;
        use iced_x86::Mnemonic as M;
        let masked = matches!(
            instruction.mnemonic(),
            M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
        );
        let certain = instruction.cpuid_features().iter().all(|feature| {
            matches!(
                feature,
                F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64
            ) || matches!(feature, F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2)
                || matches!(feature, F::AVX | F::AVX2 | F::FMA | F::AVX512F | F::AVX512VL)
        });
        if masked || !certain || instruction.has_op_mask() || !has_memory(instruction) {
            return;
        }
        if let Some(base) = near_base(instruction) {
            self.probed.note(base);
        }
    }

    /// Forgets what was probed and is now overwritten.
    pub(super) fn note_writes(&mut self, instruction: &Instruction) {
        if let Some((register, distance)) = constant_step(instruction) {
            return self.probed.moved(register, distance);
        }
        let writes = self.writes_of(instruction);
        let explicit = written_registers(instruction, writes.operands);
        self.probed.forget_all(explicit | writes.implicit);
    }

    fn writes_of(&mut self, instruction: &Instruction) -> Writes {
        let index = instruction.code() as usize;
        if let Some(known) = self.writes[index] {
            return known;
        }
        let reads = |access: OpAccess| {
            matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead)
        };
        // With operands in registers that no opcode writes by itself.
        let mut sample = *instruction;
        rename_registers(&mut sample, &OTHER_REGISTERS);
        let information = self.information.info(&sample);
        let registers = information.used_registers().iter();
        let written = registers.filter(|used| !reads(used.access()) && used.register().is_gpr());
        let all: u16 = written.fold(0, |mask, used| mask | 1 << number(used.register()));
        let operands = (0..instruction.op_count())
            .filter(|&operand| !reads(information.op_access(operand)))
            .fold(0, |mask, operand| mask | 1 << operand);
        let implicit = all & !(1 << OTHER_REGISTERS[0]);
        let writes = Writes { implicit, operands };
        self.writes[index] = Some(writes);
        writes
    }

    /// Whether an instruction writes to memory.
    pub(super) fn stores(&mut self, instruction: &Instruction) -> bool {
        let index = 2 * instruction.code() as usize + usize::from(has_memory(instruction));
        if let Some(stores) = self.stores[index] {
            return stores;
        }
        let writes = |access: OpAccess| {
            !matches!(
                access,
                OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
            )
        };
        let used = self.information.info(instruction).used_memory();
        let stores = used.iter().any(|memory| writes(memory.access()));
        self.stores[index] = Some(stores);
        stores
    }
}

/// The general-purpose registers among these operands, which are written.
fn written_registers(instruction: &Instruction, operands: u8) -> u16 {
    (0..instruction.op_count())
        .filter(|operand| operands >> operand & 1 != 0)
        .filter(|&operand| instruction.op_kind(operand) == OpKind::Register)
        .map(|operand| instruction.op_register(operand))
        .filter(|register| register.is_gpr())
        .fold(0, |mask, register| mask | 1 << number(register))
}

/// A register that no opcode writes without naming it, for each register.
const OTHER_REGISTERS: Homes = [9; 16];

/// `add` or `sub` of a constant to a 64-bit register: which, and how far it moves.
fn constant_step(instruction: &Instruction) -> Option<(u8, i32)> {
    use Code as C;
    let sign = match instruction.code() {
        C::Add_rm64_imm8 | C::Add_rm64_imm32 => 1,
        C::Sub_rm64_imm8 | C::Sub_rm64_imm32 => -1,
        C::Inc_rm64 if instruction.op0_kind() == OpKind::Register => {
            return Some((number(instruction.op0_register()), 1));
        }
        C::Dec_rm64 if instruction.op0_kind() == OpKind::Register => {
            return Some((number(instruction.op0_register()), -1));
        }
        _ => return None,
    };
    if instruction.op0_kind() != OpKind::Register {
        return None;
    }
    let distance = i32::try_from(sign * (instruction.immediate(1) as i64)).ok()?;
    Some((number(instruction.op0_register()), distance))
}

//! How each instruction changes what a block knows of its registers ([`Known`](super::known::Known)).

use iced_x86::{
    Code, ConditionCode, CpuidFeature, Instruction, Mnemonic, OpAccess, OpKind, Register,
};

use super::Translator;
use super::emit::Emitter;
use super::known::{Address, Wanted};
use super::operand::{Homes, has_memory, number, rename_registers};

/// What an opcode writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writes {
    /// General-purpose registers that are no operand.
    implicit: u16,
    /// Operands, by a bit each.
    operands: u8,
}

impl Translator {
    /// Whether a register's value is to be probed before it is an address.
    pub(super) fn wants_probe(&self, register: u8) -> bool {
        self.known.wants(Address::of(register)) != Wanted::Nothing
    }

    /// Probes the value of a guest register, which is in `home`, unless it is known to be near the window.
    pub(super) fn probe_register(
        &mut self,
        emitter: &mut Emitter,
        register: u8,
        home: u8,
        scratch: u8,
    ) {
        if self.wants_probe(register) {
            emitter.probe(self.probe, home, scratch);
            self.known.note(Address::of(register));
        }
    }

    /// An access that did not fault shows that its address is in the window, if it was made: vectors
    /// may be masked out, and an x87 store with an unmasked exception does nothing and does not fault
    /// either. So only instructions that cannot but access their operand count.
    pub(super) fn note_access(&mut self, instruction: &Instruction) {
        let Some(address) = address_of(instruction) else { return };
        let opcode = &mut self.accesses[instruction.code() as usize];
        let accesses = *opcode.get_or_insert_with(|| accesses(instruction));
        if accesses && !instruction.has_op_mask() && !instruction.is_vsib() {
            self.known.note(address);
        }
    }

    /// The general-purpose registers among an instruction's operands that it may write.
    pub(super) fn written(&mut self, instruction: &Instruction) -> u16 {
        written_registers(instruction, self.writes_of(instruction).operands)
    }

    /// Notes what an instruction has made of the registers.
    pub(super) fn note_writes(&mut self, instruction: &Instruction) {
        if let Some((to, from, distance)) = constant_step(instruction).or_else(|| copy(instruction))
        {
            return self.known.moved(to, from, distance);
        }
        let writes = self.writes_of(instruction);
        let explicit = written_registers(instruction, writes.operands);
        self.known.forget_all(explicit | writes.implicit);
        if is_small(instruction) {
            self.known.note_small(number(instruction.op0_register()));
        } else if let Some(register) = self.constant_address(instruction) {
            self.known.note(Address::of(register));
        }
    }

    /// The register that LEA gives an address in the window.
    fn constant_address(&self, instruction: &Instruction) -> Option<u8> {
        let constant = instruction.code() == Code::Lea_r64_m
            && instruction.is_ip_rel_memory_operand()
            && instruction.memory_displacement64() < 1 << self.window_bits;
        constant.then(|| number(instruction.op0_register()))
    }

    #[inline]
    fn writes_of(&mut self, instruction: &Instruction) -> Writes {
        match self.writes[instruction.code() as usize] {
            Some(known) => known,
            None => self.find_writes(instruction),
        }
    }

    #[cold]
    fn find_writes(&mut self, instruction: &Instruction) -> Writes {
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
        self.writes[instruction.code() as usize] = Some(writes);
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

/// Whether an opcode cannot but access its memory operand, where it has no mask that leaves it out.
fn accesses(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
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
    certain && !masked
}

/// The general-purpose registers among these operands, which are written.
fn written_registers(instruction: &Instruction, mut operands: u8) -> u16 {
    let mut registers = 0;
    while operands != 0 {
        let operand = operands.trailing_zeros();
        operands &= operands - 1;
        if instruction.op_kind(operand) == OpKind::Register
            && let register = instruction.op_register(operand)
            && register.is_gpr()
        {
            registers |= 1 << number(register);
        }
    }
    registers
}

/// A register that no opcode writes without naming it, for each register.
const OTHER_REGISTERS: Homes = [9; 16];

/// The address of a memory operand in 64-bit registers, without a segment's base. What vectors add to
/// it is left out.
pub(super) fn address_of(instruction: &Instruction) -> Option<Address> {
    // Which only memory operands have.
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let wide = |register: Register| register.is_gpr64().then(|| number(register));
    if !base.is_gpr64() && !index.is_gpr64() {
        return None;
    }
    if matches!(instruction.memory_segment(), Register::FS | Register::GS) {
        return None;
    }
    Some(Address {
        base: wide(base),
        index: wide(index).map(|index| (index, instruction.memory_index_scale() as u8)),
        displacement: instruction.memory_displacement64() as i64,
    })
}

/// `add` or `sub` of a constant to a 64-bit register: which, twice, and how far it moves.
fn constant_step(instruction: &Instruction) -> Option<(u8, u8, i64)> {
    use Code as C;
    if instruction.op0_kind() != OpKind::Register {
        return None;
    }
    let distance = match instruction.code() {
        C::Add_rm64_imm8 | C::Add_rm64_imm32 | C::Add_RAX_imm32 => instruction.immediate(1) as i64,
        C::Sub_rm64_imm8 | C::Sub_rm64_imm32 | C::Sub_RAX_imm32 => {
            -(instruction.immediate(1) as i64)
        }
        C::Inc_rm64 => 1,
        C::Dec_rm64 => -1,
        _ => return None,
    };
    let register = number(instruction.op0_register());
    Some((register, register, distance))
}

/// A copy of a 64-bit register, with a constant added: to, from, constant.
fn copy(instruction: &Instruction) -> Option<(u8, u8, i64)> {
    use Code as C;
    match instruction.code() {
        C::Mov_r64_rm64 | C::Mov_rm64_r64
            if instruction.op_kinds().all(|kind| kind == OpKind::Register) =>
        {
            Some((number(instruction.op0_register()), number(instruction.op1_register()), 0))
        }
        C::Lea_r64_m
            if instruction.memory_base().is_gpr64()
                && instruction.memory_index() == Register::None =>
        {
            let distance = instruction.memory_displacement64() as i64;
            Some((number(instruction.op0_register()), number(instruction.memory_base()), distance))
        }
        _ => None,
    }
}

/// Whether what an instruction gives its first operand, a register, is no further from zero than 2^32.
/// Of opcodes that may leave their 32-bit destination alone (BSF of zero, shifts by CL), nothing is said.
fn is_small(instruction: &Instruction) -> bool {
    use Code as C;
    use Mnemonic as M;
    let register = instruction.op0_register();
    if instruction.op0_kind() != OpKind::Register {
        return false;
    }
    if register.is_gpr64() {
        return match instruction.code() {
            C::Movsxd_r64_rm32 | C::Movsx_r64_rm16 | C::Movsx_r64_rm8 => true,
            C::Movzx_r64_rm16 | C::Movzx_r64_rm8 => true,
            C::Popcnt_r64_rm64 | C::Lzcnt_r64_rm64 | C::Tzcnt_r64_rm64 => true,
            C::Mov_rm64_imm32 => true,
            C::Mov_r64_imm64 => instruction.immediate64() <= 1 << 32,
            C::And_rm64_imm8 | C::And_rm64_imm32 | C::And_RAX_imm32 => {
                instruction.immediate(1) as i64 >= 0
            }
            C::Shr_rm64_imm8 => instruction.immediate8() & 63 >= 32,
            _ => false,
        };
    }
    if !register.is_gpr32() {
        return false;
    }
    match instruction.mnemonic() {
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Lea | M::Bswap | M::Neg | M::Not => true,
        M::Add | M::Adc | M::Sub | M::Sbb | M::And | M::Or | M::Xor | M::Inc | M::Dec => true,
        M::Imul => instruction.op_count() > 1,
        M::Shl | M::Shr | M::Sar | M::Rol | M::Ror => {
            instruction.op1_kind() == OpKind::Immediate8 && instruction.immediate8() & 31 != 0
        }
        M::Popcnt | M::Lzcnt | M::Tzcnt | M::Movd | M::Vmovd | M::Pmovmskb | M::Vpmovmskb => true,
        M::Andn
        | M::Bextr
        | M::Blsi
        | M::Blsr
        | M::Bzhi
        | M::Rorx
        | M::Sarx
        | M::Shlx
        | M::Shrx => true,
        // Whether the condition holds or not (Intel SDM volume 2, "CMOVcc").
        _ => instruction.condition_code() != ConditionCode::None,
    }
}

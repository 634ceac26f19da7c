//! The guest's loop: takes a record, sets the flags, loads the operands, executes the instruction
//! in question, and stores what came of it. RSI is the record, RDI the result, RBP the end of the
//! records, R12 a table of flags with a word below it for operands in memory, R13 the stack.
//! Nothing between the two points where flags are set and stored touches them but the instruction.

use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use tregion::case::{Case, Mapping, Object, ObjectId};
use tregion::guest::{GuestAddress, GuestRange, Permissions};

const TEXT: u64 = 0x10_0000;
const TABLE: u64 = 0x20_0000;
const STACK: u64 = 0x30_0000;
const RECORDS: u64 = 0x100_0000;
const RESULTS: u64 = 0x400_0000;

/// Bytes of a result: the first operand with all of its register, the second, AX, and the flags.
pub(crate) const RESULT_BYTES: usize = 24;
/// RFLAGS before the instruction: none, all of the six, CF alone, all but CF.
pub(crate) const FLAGS: [u64; 4] = [0x202, 0xad7, 0x203, 0xad6];
/// What of RFLAGS is compared by hand.
const ARITHMETIC: u64 = 0x8d5;
/// What a register holds beside an operand.
const BESIDE: u64 = 0x8877_6655_4433_2211;
const IN_MEMORY: i64 = -64;

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Register(Register),
    /// In memory, by an address with this base.
    Memory(Register),
}

impl Place {
    fn memory(self) -> Option<Register> {
        match self {
            Self::Register(_) => None,
            Self::Memory(base) => Some(base),
        }
    }
}

/// Loads of a record's fields: offset in the record and the register that takes it, by its width.
pub(crate) type Load = (u8, Register);

/// One instruction and what it needs.
pub(crate) struct Trial {
    pub(crate) instruction: Instruction,
    /// The operand in memory or register that is loaded from offset `.1`, with so many bytes.
    pub(crate) operands: Vec<(Place, u8, usize)>,
    /// Other registers, loaded before.
    pub(crate) others: Vec<Load>,
    /// Where in the record the number of the flags is.
    pub(crate) flags_at: u8,
    pub(crate) record_bytes: usize,
}

pub(crate) fn memory_operand(base: Register) -> MemoryOperand {
    MemoryOperand::with_base_displ_size(base, IN_MEMORY, 1)
}

/// The register of `bytes` bytes with the number of a 64-bit one.
pub(crate) fn sized(register: Register, bytes: usize) -> Register {
    let number = register.number() as u32;
    match bytes {
        1 if number >= 4 => Register::SPL + (number - 4),
        1 => Register::AL + number,
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => register,
    }
}

fn load(assembler: &mut CodeAssembler, register: Register, base: Register, offset: i64) {
    let code = match register.size() {
        1 => Code::Mov_r8_rm8,
        2 => Code::Mov_r16_rm16,
        4 => Code::Mov_r32_rm32,
        _ => Code::Mov_r64_rm64,
    };
    let operand = MemoryOperand::with_base_displ_size(base, offset, 1);
    assembler.add_instruction(Instruction::with2(code, register, operand).unwrap()).unwrap();
}

fn store(assembler: &mut CodeAssembler, register: Register, base: Register, offset: i64) {
    let code = match register.size() {
        1 => Code::Mov_rm8_r8,
        2 => Code::Mov_rm16_r16,
        4 => Code::Mov_rm32_r32,
        _ => Code::Mov_rm64_r64,
    };
    let operand = MemoryOperand::with_base_displ_size(base, offset, 1);
    assembler.add_instruction(Instruction::with2(code, operand, register).unwrap()).unwrap();
}

fn constant(assembler: &mut CodeAssembler, register: Register, value: u64) {
    let full = register.full_register();
    assembler
        .add_instruction(Instruction::with2(Code::Mov_r64_imm64, full, value).unwrap())
        .unwrap();
}

impl Trial {
    /// Emits the trial of one record.
    fn emit(&self, assembler: &mut CodeAssembler) {
        assembler.movzx(r8d, byte_ptr(rsi + i32::from(self.flags_at))).unwrap();
        assembler.push(qword_ptr(r12 + r8 * 8)).unwrap();
        assembler.popfq().unwrap();
        constant(assembler, Register::RAX, BESIDE);
        for (place, ..) in &self.operands {
            match place {
                Place::Register(register) => constant(assembler, *register, BESIDE),
                Place::Memory(_) => {
                    constant(assembler, Register::R8, BESIDE);
                    store(assembler, Register::R8, Register::R12, IN_MEMORY);
                }
            }
        }
        for (offset, register) in &self.others {
            load(assembler, *register, Register::RSI, i64::from(*offset));
        }
        for (place, offset, bytes) in &self.operands {
            let register = match place {
                Place::Register(register) => *register,
                Place::Memory(_) => sized(Register::R8, *bytes),
            };
            load(assembler, register, Register::RSI, i64::from(*offset));
            if place.memory().is_some() {
                store(assembler, register, Register::R12, IN_MEMORY);
            }
        }
        let bases = self.operands.iter().filter_map(|(place, ..)| place.memory());
        for base in bases.filter(|base| *base != Register::R12) {
            let copy = Instruction::with2(Code::Mov_r64_rm64, base, Register::R12).unwrap();
            assembler.add_instruction(copy).unwrap();
        }
        assembler.add_instruction(self.instruction).unwrap();
        self.emit_result(assembler);
    }

    fn emit_result(&self, assembler: &mut CodeAssembler) {
        for (index, (place, ..)) in self.operands.iter().enumerate() {
            let register = match place {
                Place::Register(register) => register.full_register(),
                Place::Memory(_) => {
                    load(assembler, Register::R8, Register::R12, IN_MEMORY);
                    Register::R8
                }
            };
            // The second without its upper half, which makes room for AX.
            let register = if index == 0 { register } else { sized(register, 4) };
            store(assembler, register, Register::RDI, index as i64 * 8);
        }
        assembler.mov(dword_ptr(rdi + 12), eax).unwrap();
        assembler.mov(rsp, r13).unwrap();
        assembler.pushfq().unwrap();
        assembler.pop(r8).unwrap();
        assembler.mov(qword_ptr(rdi + 16), r8).unwrap();
        assembler.lea(rdi, qword_ptr(rdi + RESULT_BYTES as i32)).unwrap();
    }
}

/// A case that makes every trial of the list with every record. Results come in order of records,
/// and for each in the order of trials.
pub(crate) fn case(trials: &[Trial], records: &[u8]) -> Case {
    let mut assembler = CodeAssembler::new(64).unwrap();
    let mut top = assembler.create_label();
    assembler.set_label(&mut top).unwrap();
    for trial in trials {
        trial.emit(&mut assembler);
    }
    assembler.add(rsi, trials[0].record_bytes as i32).unwrap();
    assembler.cmp(rsi, rbp).unwrap();
    assembler.jne(top).unwrap();
    assembler.hlt().unwrap();
    let text = assembler.assemble(TEXT).unwrap();
    let count = records.len() / trials[0].record_bytes * trials.len();
    let mut table = vec![0; 256];
    table.extend(FLAGS.iter().flat_map(|flags| flags.to_le_bytes()));
    let contents = [
        ("text", TEXT, text, Permissions::ReadExecute),
        ("table", TABLE, table, Permissions::ReadWrite),
        ("stack", STACK, vec![0; 4096], Permissions::ReadWrite),
        ("records", RECORDS, records.to_vec(), Permissions::Read),
        ("results", RESULTS, vec![0; count * RESULT_BYTES], Permissions::ReadWrite),
    ];
    let mut case = Case::default();
    for (index, (name, at, bytes, permissions)) in contents.into_iter().enumerate() {
        let pages = bytes.len().div_ceil(4096);
        let mut object = Object::zeroed(name, pages);
        object.contents[..bytes.len()].copy_from_slice(&bytes);
        case.objects.push(object);
        let range = GuestRange::new(GuestAddress(at), pages as u64 * 4096).unwrap();
        case.mappings.push(Mapping { range, object: ObjectId(index), offset: 0, permissions });
    }
    case.state.rip = TEXT;
    case.state.gpr[4] = STACK + 2048;
    case.state.gpr[5] = RECORDS + records.len() as u64;
    case.state.gpr[6] = RECORDS;
    case.state.gpr[7] = RESULTS;
    case.state.gpr[12] = TABLE + 256;
    case.state.gpr[13] = STACK + 2048;
    case.validate().unwrap();
    case
}

/// The object that results are in.
pub(crate) const RESULTS_OBJECT: ObjectId = ObjectId(4);

/// What one trial came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Result {
    pub(crate) first: u64,
    pub(crate) second: u32,
    pub(crate) eax: u32,
    pub(crate) flags: u64,
}

impl Result {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            first: word(0),
            second: word(8) as u32,
            eax: (word(8) >> 32) as u32,
            flags: word(16) & ARITHMETIC,
        }
    }
}

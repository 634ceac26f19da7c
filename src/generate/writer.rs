//! [`Writer`]: a program in the making. It encodes instructions one behind the other, knows which
//! registers hold known values, and keeps account of what is certain to be executed.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use super::choices::Choices;
use super::family::Swarm;
use super::form::{FormId, instruction_form};
use super::layout::Layout;
use super::refused::Refusal;
use super::table::FormTable;

/// A register that keeps a value that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub register: u8,
    pub value: u64,
}

/// Bytes to be written into the code when it is complete.
#[derive(Clone, Copy, Debug)]
struct Patch {
    at: usize,
    size: usize,
    value: u64,
}

/// The place of a branch displacement that waits for its target.
#[derive(Clone, Copy, Debug)]
#[must_use = "an unbound branch goes to the next instruction"]
pub(super) struct Fixup {
    /// Behind the displacement, which is the end of the instruction.
    end: usize,
    size: usize,
}

/// The most bytes that a program may have before its last instruction.
pub(super) const MOST_CODE: usize = 1800;

/// See the file's head.
pub(super) struct Writer<'table, 'bytes> {
    pub table: &'table FormTable,
    pub choices: Choices<'bytes>,
    pub layout: Layout,
    pub swarm: Swarm,
    pub baseline: bool,
    /// Address of the first instruction.
    pub entry: u64,
    encoder: Encoder,
    length: usize,
    patches: Vec<Patch>,
    /// Registers that point into data, then one that holds a small index.
    pub pointers: [Known; 2],
    pub index: Known,
    /// The vector register that holds small indices.
    pub index_vector: u32,
    /// General-purpose registers that must not be written, a bit each. RSP always is one.
    pub pinned: u16,
    /// Registers that the instruction under way must not write either.
    pub avoid: u16,
    pub segment_bases: [u64; 2],
    /// Where the next memory operand must be.
    pub forced_target: Option<u64>,
    /// Memory and registers of the instruction under way are written by its preparation.
    pub prepared: bool,
    pub high_bytes: bool,
    /// The code may run at another address, so nothing in it may be relative to RIP but branches.
    pub relocated: bool,
    /// The program ends here, by an event; none can come behind it.
    pub over: bool,
    /// The data have a second address.
    pub alias_live: bool,
    /// What is emitted now is executed by every run that comes to the end.
    pub certain: bool,
    /// Only instructions that leave the stack alone.
    pub balanced: bool,
    pub depth: u8,
    pub executed: Vec<FormId>,
    pub refused: Vec<Refusal>,
    /// Words of the constants page that are code addresses: how many.
    pub slots: Vec<u64>,
}

impl<'table, 'bytes> Writer<'table, 'bytes> {
    pub(super) fn new(
        table: &'table FormTable,
        choices: Choices<'bytes>,
        layout: Layout,
        swarm: Swarm,
        baseline: bool,
    ) -> Self {
        let unknown = Known { register: 4, value: 0 };
        Self {
            table,
            choices,
            layout,
            swarm,
            baseline,
            entry: layout.code,
            encoder: Encoder::try_with_capacity(64, 4096).expect("64 is a bitness"),
            length: 0,
            patches: Vec::new(),
            pointers: [unknown; 2],
            index: unknown,
            index_vector: 15,
            pinned: 1 << 4,
            avoid: 0,
            segment_bases: [layout.data(), layout.data()],
            forced_target: None,
            prepared: false,
            high_bytes: false,
            relocated: false,
            over: false,
            alias_live: false,
            certain: true,
            balanced: false,
            depth: 0,
            executed: Vec::with_capacity(64),
            refused: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Bytes written so far.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Address of the next instruction.
    pub(super) fn address(&self) -> u64 {
        self.entry + self.length as u64
    }

    /// Encodes an instruction. False, with nothing written, where its operands do not go together.
    pub(super) fn try_emit(&mut self, instruction: &Instruction) -> bool {
        match self.encoder.encode(instruction, self.address()) {
            Ok(length) => {
                self.length += length;
                if self.certain {
                    let form = instruction_form(instruction);
                    self.executed.extend(self.table.id_of(form));
                }
                true
            }
            Err(_) => {
                let mut bytes = self.encoder.take_buffer();
                bytes.truncate(self.length);
                self.encoder.set_buffer(bytes);
                false
            }
        }
    }

    /// Encodes an instruction of the generator's own making.
    pub(super) fn emit(&mut self, instruction: &Instruction) {
        let emitted = self.try_emit(instruction);
        debug_assert!(emitted, "{instruction:?} does not encode");
    }

    /// Encodes what iced made of fixed operands.
    pub(super) fn emit_made(&mut self, made: Result<Instruction, iced_x86::IcedError>) {
        match made {
            Ok(instruction) => self.emit(&instruction),
            Err(error) => debug_assert!(false, "{error}"),
        }
    }

    /// Emits a branch and leaves its target open; `size` are the bytes of its displacement.
    pub(super) fn emit_branch(&mut self, code: Code, size: usize) -> Fixup {
        // Too far for a short form is impossible: the target is the branch's own neighbourhood.
        let target = self.address() + 16;
        self.emit_made(Instruction::with_branch(code, target));
        Fixup { end: self.length, size }
    }

    /// A branch back to where the program already is.
    pub(super) fn emit_backward(&mut self, code: Code, target: u64) -> bool {
        Instruction::with_branch(code, target).is_ok_and(|branch| self.try_emit(&branch))
    }

    /// Emits `lea register, [target]` with an open target.
    pub(super) fn emit_open_lea(&mut self, register: Register) -> Fixup {
        let operand = MemoryOperand::with_base_displ_size(Register::RIP, self.address() as i64, 8);
        self.emit_made(Instruction::with2(Code::Lea_r64_m, register, operand));
        Fixup { end: self.length, size: 4 }
    }

    /// The target of an open branch is here. If that is too far, it is the next instruction.
    pub(super) fn bind(&mut self, fixup: Fixup) {
        let distance = self.length - fixup.end;
        let value = if fixup.size == 1 && distance > 127 { 0 } else { distance as u64 };
        self.patches.push(Patch { at: fixup.end - fixup.size, size: fixup.size, value });
    }

    /// Bytes that are never executed.
    pub(super) fn emit_junk(&mut self, count: usize) {
        let mut bytes = self.encoder.take_buffer();
        bytes.resize(self.length + count, 0xcc);
        for byte in &mut bytes[self.length..] {
            *byte = self.choices.byte();
        }
        self.length += count;
        self.encoder.set_buffer(bytes);
    }

    /// Changes bytes at an address already written.
    pub(super) fn patch(&mut self, address: u64, size: usize, value: u64) {
        self.patches.push(Patch { at: (address - self.entry) as usize, size, value });
    }

    /// Sets a 64-bit register.
    pub(super) fn load(&mut self, register: u8, value: u64) {
        let number = u32::from(register);
        if let Ok(low) = u32::try_from(value) {
            self.emit_made(Instruction::with2(Code::Mov_r32_imm32, Register::EAX + number, low));
        } else if !self.relocated && self.reaches(value) && self.choices.chance(128) {
            let operand = MemoryOperand::with_base_displ_size(Register::RIP, value as i64, 8);
            self.emit_made(Instruction::with2(Code::Lea_r64_m, Register::RAX + number, operand));
        } else {
            self.emit_made(Instruction::with2(Code::Mov_r64_imm64, Register::RAX + number, value));
        }
    }

    /// Whether a 32-bit displacement from here comes to `address`.
    pub(super) fn reaches(&self, address: u64) -> bool {
        let distance = address.wrapping_sub(self.address()) as i64;
        distance.unsigned_abs() < 0x7fff_0000
    }

    /// Sets those known registers again that are in `clobbered`, a bit each.
    pub(super) fn restore(&mut self, clobbered: u16) {
        for known in [self.pointers[0], self.pointers[1], self.index] {
            if self.pinned & clobbered & 1 << known.register != 0 {
                self.load(known.register, known.value);
            }
        }
    }

    /// A copy of the bytes from `start` on.
    pub(super) fn bytes_from(&mut self, start: usize) -> Vec<u8> {
        let bytes = self.encoder.take_buffer();
        let copy = bytes[start..].to_vec();
        self.encoder.set_buffer(bytes);
        copy
    }

    /// The finished code.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut bytes = self.encoder.take_buffer();
        for patch in &self.patches {
            bytes[patch.at..patch.at + patch.size]
                .copy_from_slice(&patch.value.to_le_bytes()[..patch.size]);
        }
        bytes
    }
}

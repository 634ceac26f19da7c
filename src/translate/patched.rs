//! Immediates that the guest patches: code that changes nothing but constants of its instructions, again and
//! again, is translated once. The instruction then reads its immediate from guest memory each time it
//! runs, and the block does not compare those bytes. (Dehnert et al., "The Transmeta Code Morphing
//! Software", CGO 2003, section 4: stylized self-modifying code.)

use std::ops::Range;

use iced_x86::{Code, Instruction, OpKind};
use smallvec::SmallVec;

use super::operand::{
    MOVED, NeedsAssist, address_registers, explicit_registers, gpr32, gpr64, has_memory,
};
use super::{Translator, Work, emit};
use crate::guest::{GuestAddress, PAGE_SIZE, decoder};

/// An immediate by its place in a block: offset of its instruction, and of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patched {
    /// Offset of the instruction from the block's first byte.
    pub instruction: u32,
    /// Offsets of its immediate.
    pub bytes: Range<u32>,
}

/// Immediates of a block, in order.
pub type PatchedList = SmallVec<[Patched; 4]>;

/// Earlier versions of a block that differ from it in immediates only, from which on those are read.
const VERSIONS: usize = 2;
/// The spill slot for the register that gets the immediate. No operand that stays in its registers takes
/// as many others.
const SLOT: usize = 3;

/// The immediates of `code`, at `pc`, that are another in `earlier` versions of it, as far as there are two of
/// these in which nothing else is.
pub fn patched<'a>(
    code: &[u8],
    pc: GuestAddress,
    earlier: impl Iterator<Item = &'a [u8]>,
) -> PatchedList {
    let earlier: SmallVec<[&[u8]; 16]> = earlier.filter(|bytes| !bytes.is_empty()).collect();
    let longest = earlier.iter().map(|bytes| bytes.len()).max().unwrap_or(0).min(code.len());
    if earlier.len() < VERSIONS {
        return PatchedList::new();
    }
    let all = patchable(&code[..longest], pc);
    let mut found: SmallVec<[bool; 16]> = SmallVec::from_elem(false, all.len());
    let mut versions = 0;
    for bytes in earlier {
        let mut differs = found.clone();
        let differences = (0..bytes.len().min(code.len())).filter(|&at| bytes[at] != code[at]);
        let known = differences.map(|at| all.iter().position(|it| it.bytes.contains(&(at as u32))));
        let mut indexes = known.map(|index| index.inspect(|index| differs[*index] = true));
        let only_immediates = indexes.all(|index| index.is_some());
        if only_immediates {
            found = differs;
            versions += 1;
        }
    }
    if versions < VERSIONS {
        return PatchedList::new();
    }
    all.into_iter().zip(found).filter_map(|(it, found)| found.then_some(it)).collect()
}

/// The immediates in `code` that can be read when their instructions run.
pub fn patchable(code: &[u8], pc: GuestAddress) -> PatchedList {
    let mut decoder = decoder(code, pc.0);
    let mut all = PatchedList::new();
    while decoder.can_decode() {
        let start = decoder.position() as u32;
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let offsets = decoder.get_constant_offsets(&instruction);
        if of_register(&instruction).is_none() || !offsets.has_immediate() {
            continue;
        }
        let first = start + offsets.immediate_offset() as u32;
        let bytes = first..first + offsets.immediate_size() as u32;
        if can_be_read(pc.wrapping_add(u64::from(first)), bytes.len()) {
            all.push(Patched { instruction: start, bytes });
        }
    }
    all
}

/// Whether so many bytes can be read by aligned accesses to one page: the guest may have asked for
/// alignment checks.
fn can_be_read(address: GuestAddress, size: usize) -> bool {
    let in_page = address.0 % PAGE_SIZE;
    match size {
        1 => true,
        4 => (in_page & !3) + 8 <= PAGE_SIZE || address.0.is_multiple_of(4),
        8 => address.0.is_multiple_of(8),
        _ => false,
    }
}

/// The same instruction with a register, still to be chosen, in the place of its immediate.
fn of_register(instruction: &Instruction) -> Option<Instruction> {
    use Code as C;
    let code = match instruction.code() {
        C::Mov_r32_imm32 | C::Mov_rm32_imm32 => C::Mov_rm32_r32,
        C::Mov_r64_imm64 | C::Mov_rm64_imm32 => C::Mov_rm64_r64,
        C::Add_EAX_imm32 | C::Add_rm32_imm32 | C::Add_rm32_imm8 => C::Add_rm32_r32,
        C::Or_EAX_imm32 | C::Or_rm32_imm32 | C::Or_rm32_imm8 => C::Or_rm32_r32,
        C::Adc_EAX_imm32 | C::Adc_rm32_imm32 | C::Adc_rm32_imm8 => C::Adc_rm32_r32,
        C::Sbb_EAX_imm32 | C::Sbb_rm32_imm32 | C::Sbb_rm32_imm8 => C::Sbb_rm32_r32,
        C::And_EAX_imm32 | C::And_rm32_imm32 | C::And_rm32_imm8 => C::And_rm32_r32,
        C::Sub_EAX_imm32 | C::Sub_rm32_imm32 | C::Sub_rm32_imm8 => C::Sub_rm32_r32,
        C::Xor_EAX_imm32 | C::Xor_rm32_imm32 | C::Xor_rm32_imm8 => C::Xor_rm32_r32,
        C::Cmp_EAX_imm32 | C::Cmp_rm32_imm32 | C::Cmp_rm32_imm8 => C::Cmp_rm32_r32,
        C::Test_EAX_imm32 | C::Test_rm32_imm32 => C::Test_rm32_r32,
        C::Add_RAX_imm32 | C::Add_rm64_imm32 | C::Add_rm64_imm8 => C::Add_rm64_r64,
        C::Or_RAX_imm32 | C::Or_rm64_imm32 | C::Or_rm64_imm8 => C::Or_rm64_r64,
        C::Adc_RAX_imm32 | C::Adc_rm64_imm32 | C::Adc_rm64_imm8 => C::Adc_rm64_r64,
        C::Sbb_RAX_imm32 | C::Sbb_rm64_imm32 | C::Sbb_rm64_imm8 => C::Sbb_rm64_r64,
        C::And_RAX_imm32 | C::And_rm64_imm32 | C::And_rm64_imm8 => C::And_rm64_r64,
        C::Sub_RAX_imm32 | C::Sub_rm64_imm32 | C::Sub_rm64_imm8 => C::Sub_rm64_r64,
        C::Xor_RAX_imm32 | C::Xor_rm64_imm32 | C::Xor_rm64_imm8 => C::Xor_rm64_r64,
        C::Cmp_RAX_imm32 | C::Cmp_rm64_imm32 | C::Cmp_rm64_imm8 => C::Cmp_rm64_r64,
        C::Test_RAX_imm32 | C::Test_rm64_imm32 => C::Test_rm64_r64,
        _ => return None,
    };
    // R14 and R15 would have to be fetched besides.
    let registers = explicit_registers(instruction) | address_registers(instruction);
    if registers & MOVED & !(1 << 4) != 0 {
        return None;
    }
    let mut made = *instruction;
    made.set_code(code);
    made.set_op1_kind(OpKind::Register);
    Some(made)
}

impl Translator {
    /// Emits an instruction that reads its immediate, which is at `bytes` of the block.
    pub(super) fn read_patched(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
        bytes: &Range<u32>,
    ) -> Result<(), NeedsAssist> {
        let mut made = of_register(instruction).ok_or(NeedsAssist)?;
        let used = explicit_registers(instruction) | address_registers(instruction);
        let free = [0, 1, 2, 3, 5].into_iter().find(|register| used >> register & 1 == 0);
        let register = free.expect("an instruction has at most three registers");
        let wide = made.op0_register().is_gpr64() || made.memory_size().size() == 8;
        made.set_op1_register(if wide { gpr64(register) } else { gpr32(register) });
        // It is shorter, so the farthest displacement from RIP may not reach.
        let result = self.encoder.encode(&made, made.ip());
        let encoded = self.encoder.take_buffer();
        result.map_err(|_| NeedsAssist)?;
        let address = work.request.pc.wrapping_add(u64::from(bytes.start));
        work.emitter.spill(SLOT, register);
        work.emitter.read_immediate(register, address.0, bytes.len());
        self.moved(&mut work.emitter, &made, &encoded)?;
        work.emitter.restore(SLOT);
        if has_memory(instruction) {
            self.note_access(instruction);
        } else {
            // It is anything.
            self.known.forget(super::number(instruction.op0_register()));
        }
        Ok(())
    }
}

impl<'a> Work<'a> {
    /// Where the immediate of the instruction in hand is in the block, if it is to be read.
    pub(super) fn patched_immediate(&self) -> Option<&'a Range<u32>> {
        let found = self.request.patched.iter().find(|it| it.instruction == self.done);
        found.map(|it| &it.bytes)
    }

    /// How many bytes behind `offset` are not compared, and how many then are, of a source of `size`.
    pub(super) fn next_compared(&self, offset: usize, size: usize) -> (usize, usize) {
        let mut start = offset;
        for patched in self.request.patched {
            let (first, end) = (patched.bytes.start as usize, patched.bytes.end as usize);
            if start < first {
                return (start - offset, first.min(size) - start);
            }
            start = start.max(end);
        }
        let start = start.min(size);
        (start - offset, size - start)
    }
}

impl emit::Emitter {
    /// `register ←` so many bytes of guest memory at a constant address, sign-extended. Uses R14.
    fn read_immediate(&mut self, register: u8, address: u64, size: usize) {
        let word = address & !7;
        let shift = (address - word) * 8;
        if shift + 8 * size as u64 <= 64 {
            self.constant(emit::FREE, word);
            self.guest_load(register, emit::FREE, 0, 8);
            self.rotate_right(register, shift as u8);
        } else {
            let first = address & !3;
            self.constant(emit::FREE, first);
            self.guest_load(register, emit::FREE, 0, 4);
            self.guest_load(emit::FREE, emit::FREE, 4, 4);
            self.rotate_right(emit::FREE, 32);
            self.add(register, register, emit::FREE);
            self.rotate_right(register, ((address - first) * 8) as u8);
        }
        self.sign_extend(register, size);
    }
}

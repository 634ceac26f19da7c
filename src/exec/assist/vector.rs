//! Gathers, scatters and 64-byte stores: instructions whose addresses are not those of an operand.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::exec::access::Access;
use crate::exec::exit::Exit;
use crate::exec::shared::Locked;
use crate::exec::step::{Undone, not_canonical};
use crate::exec::vcpu::Vcpu;
use crate::guest::{GuestAddress, State, Vendor};
use crate::translate::is_canonical;

/// What a gather or scatter works on.
struct Elements {
    count: usize,
    /// Bytes of an element.
    size: usize,
    /// Bytes of the longer of the data and the indexes.
    length: usize,
    /// The register gathered to or scattered from.
    data: Register,
    mask: Mask,
}

#[derive(Clone, Copy)]
enum Mask {
    Opmask(usize),
    /// The sign bits of the elements of a vector register.
    Vector(usize),
}

impl Vcpu {
    /// One element after the other, each with its address checked. A fault leaves those before done
    /// and their mask bits clear, as the processor does (Intel SDM volume 2, "VPGATHERDD").
    pub(super) fn gather_or_scatter(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        check_features(core, instruction)?;
        if is_prefetch(instruction) {
            self.pass(instruction);
            return Ok(());
        }
        let mut state = self.state();
        let Some(elements) = elements(instruction) else {
            return Err(Exit::Unsupported { what: "an unknown gather" }.into());
        };
        let memory_first = instruction.op0_kind() == OpKind::Memory;
        let operand = (0..instruction.op_count())
            .find(|&operand| instruction.op_kind(operand) == OpKind::Memory)
            .unwrap_or_default();
        // AMD's processors leave the masks of elements that are not done as they were, and clear those of all
        // that are passed; where vectors are masks, what lies behind the elements becomes zero with the last one.
        let amd = Vendor::of_this_host() == Vendor::Amd;
        if !amd {
            elements.spread(&mut state);
        }
        for element in 0..elements.count {
            if !elements.is_active(&state, element) {
                if amd {
                    elements.clear(&mut state, element);
                }
                continue;
            }
            let index = |register, element: usize, size: usize| {
                if size == 0 || !Register::is_vector_register(register) {
                    return self.register_value(register);
                }
                Some(lane(&state, register, element, size))
            };
            let address =
                instruction.try_virtual_address(operand, element, index).unwrap_or_default();
            let moved = if memory_first {
                let word = lane(&state, elements.data, element, elements.size);
                self.scatter(core, instruction, address, word, elements.size)
            } else {
                self.gather(core, instruction, address, elements.size).map(|word| {
                    set_lane(&mut state, elements.data, element, elements.size, word);
                    if !(amd && matches!(elements.mask, Mask::Vector(_))) {
                        elements.clear_behind(&mut state, elements.length);
                    }
                })
            };
            if let Err(exit) = moved {
                self.set_state(&state);
                return Err(exit.into());
            }
            elements.clear(&mut state, element);
        }
        elements.finish(&mut state, memory_first);
        self.set_state(&state);
        self.pass(instruction);
        Ok(())
    }

    fn gather(
        &self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
        address: u64,
        size: usize,
    ) -> Result<u64, Exit> {
        if !is_canonical(address) {
            return Err(not_canonical(instruction));
        }
        let mut bytes = [0; 8];
        self.load(core, GuestAddress(address), &mut bytes[..size])?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn scatter(
        &self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
        address: u64,
        word: u64,
        size: usize,
    ) -> Result<(), Exit> {
        if !is_canonical(address) {
            return Err(not_canonical(instruction));
        }
        self.store(core, GuestAddress(address), &word.to_le_bytes()[..size])
    }

    /// MOVDIR64B: 64 bytes from the operand to the aligned address in a register.
    pub(super) fn direct_store(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        check_features(core, instruction)?;
        let source = self.canonical_operand(instruction)?;
        let destination = self.register_value(instruction.op0_register()).unwrap_or_default();
        let mut bytes = [0; 64];
        self.load(core, source, &mut bytes)?;
        if !destination.is_multiple_of(64) || !is_canonical(destination) {
            return Err(Exit::general_protection().into());
        }
        self.check(core, GuestAddress(destination), 64, Access::Write)?;
        self.store(core, GuestAddress(destination), &bytes)?;
        self.pass(instruction);
        Ok(())
    }

    /// A vector register.
    pub(crate) fn vector(&self, number: usize) -> [u64; 8] {
        self.state().vector[number]
    }
}

impl Elements {
    fn is_active(&self, state: &State, element: usize) -> bool {
        match self.mask {
            Mask::Opmask(mask) => state.opmask[mask] >> element & 1 != 0,
            Mask::Vector(mask) => {
                let bit = (element + 1) * self.size * 8 - 1;
                state.vector[mask][bit / 64] >> (bit % 64) & 1 != 0
            }
        }
    }

    /// A vector's mask becomes all ones or all zeros in each element, and zero behind them, before the
    /// first access.
    fn spread(&self, state: &mut State) {
        let Mask::Vector(mask) = self.mask else { return };
        for element in 0..self.length / self.size {
            let word = if self.is_active(state, element) { u64::MAX } else { 0 };
            set_word(&mut state.vector[mask], element, self.size, word);
        }
        state.vector[mask][self.length / 8..].fill(0);
    }

    fn clear(&self, state: &mut State, element: usize) {
        match self.mask {
            Mask::Opmask(mask) => state.opmask[mask] &= !(1 << element),
            Mask::Vector(mask) => {
                set_word(&mut state.vector[mask], element, self.size, 0);
            }
        }
    }

    /// What is beyond the elements becomes zero.
    fn finish(&self, state: &mut State, scatters: bool) {
        match self.mask {
            Mask::Opmask(mask) => state.opmask[mask] = 0,
            Mask::Vector(mask) => state.vector[mask] = [0; 8],
        }
        if !scatters {
            self.clear_behind(state, self.count * self.size);
        }
    }

    /// What is gathered to becomes zero behind `bytes` bytes: with the first element behind the
    /// longer of data and indexes, with the last behind the elements.
    fn clear_behind(&self, state: &mut State, bytes: usize) {
        state.vector[self.data.number()][bytes.div_ceil(8)..].fill(0);
    }
}

/// #UD if the processor has not got the instruction.
fn check_features(core: &Locked<'_>, instruction: &Instruction) -> Result<(), Exit> {
    match core.has_all(instruction.cpuid_features()) {
        true => Ok(()),
        false => Err(Exit::exception(crate::exec::exit::vector::UD)),
    }
}

fn elements(instruction: &Instruction) -> Option<Elements> {
    let size = instruction.memory_size().element_size();
    let evex = instruction.has_op_mask();
    let registers: Vec<Register> = (0..instruction.op_count())
        .filter(|&operand| instruction.op_kind(operand) == OpKind::Register)
        .map(|operand| instruction.op_register(operand))
        .collect();
    let data = *registers.first()?;
    let index = instruction.memory_index();
    let index_size = if is_quad_index(instruction) { 8 } else { 4 };
    let count = (data.size() / size).min(index.size() / index_size);
    let mask = if evex {
        Mask::Opmask(instruction.op_mask().number())
    } else {
        Mask::Vector(registers.get(1)?.number())
    };
    let length = data.size().max(index.size());
    Some(Elements { count, size, length, data, mask })
}

fn is_quad_index(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Vgatherqps
            | M::Vgatherqpd
            | M::Vpgatherqd
            | M::Vpgatherqq
            | M::Vscatterqps
            | M::Vscatterqpd
            | M::Vpscatterqd
            | M::Vpscatterqq
    )
}

fn is_prefetch(instruction: &Instruction) -> bool {
    !(0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Register)
}

fn lane(state: &State, register: Register, element: usize, size: usize) -> u64 {
    let vector = &state.vector[register.number()];
    match size {
        8 => vector[element],
        _ => vector[element / 2] >> (element % 2 * 32) & 0xffff_ffff,
    }
}

fn set_lane(state: &mut State, register: Register, element: usize, size: usize, word: u64) {
    set_word(&mut state.vector[register.number()], element, size, word);
}

fn set_word(vector: &mut [u64; 8], element: usize, size: usize, word: u64) {
    match size {
        8 => vector[element] = word,
        _ => {
            let shift = element % 2 * 32;
            let place = &mut vector[element / 2];
            *place = *place & !(0xffff_ffff << shift) | (word & 0xffff_ffff) << shift;
        }
    }
}

//! How a [`Writer`] picks operands: registers that leave known values alone, immediates at the
//! edges of their range, and memory that mostly is there.

use iced_x86::{Code, Instruction, Register};

use super::build::{Picker, gpr8, vector_register};
use super::layout::DATA_BYTES;
use super::operand::Operand;
use super::template::{Special, Template};
use super::values;
use super::writer::Writer;
use crate::guest::PAGE_SIZE;

/// Where in the data most accesses go, so that instructions meet each other's results.
const HOT_START: u64 = 0x280;
const HOT_BYTES: usize = 0x100;

/// What a memory operand needs of its address.
#[derive(Clone, Copy, Debug)]
struct Access {
    bytes: u64,
    alignment: u64,
    written: bool,
    /// Misalignment would not fault but cost.
    strict: bool,
}

impl Picker for Writer<'_, '_> {
    fn begin(&mut self, template: &Template) {
        self.avoid = match template.special {
            // Dividend and divisor are prepared apart.
            Special::Divide(_) => 0b101,
            _ => 0,
        };
        self.high_bytes = template.legacy && self.choices.chance(40);
    }

    fn gpr(&mut self, bytes: u8, written: bool) -> Register {
        let mut number = self.choices.below(16) as u32;
        if written || self.prepared {
            let taken = self.pinned | self.avoid | 1 << 4;
            while taken >> number & 1 != 0 {
                number = (number + 1) % 16;
            }
        }
        match bytes {
            1 if self.high_bytes && number < 4 => Register::AH + number,
            1 => gpr8(number),
            2 => Register::AX + number,
            4 => Register::EAX + number,
            _ => Register::RAX + number,
        }
    }

    fn vector(&mut self, count: usize, written: bool) -> u32 {
        // Mostly the low ones, so that results meet.
        let count = if self.choices.chance(160) { 6 } else { count };
        let number = self.choices.below(count) as u32;
        if written && number == self.index_vector { number ^ 1 } else { number }
    }

    fn number(&mut self, count: usize) -> u32 {
        self.choices.below(count) as u32
    }

    fn memory(&mut self, template: &Template, instruction: &mut Instruction) {
        let access = self.access(template);
        if access.alignment == 1 && !access.strict && self.forced_target.is_none() {
            // Where nothing else is at stake.
            if self.choices.chance(6) {
                return self.reach_by_stack_pointer(instruction);
            }
        }
        let target = self.target(access);
        let narrow = template.code == Code::Movdir64b_r32_m512;
        self.reach(target, narrow, template.special == Special::Plain, instruction);
        for register in [instruction.memory_base(), instruction.memory_index()] {
            if register.is_gpr() {
                self.avoid |= 1 << register.number();
            }
        }
    }

    fn vsib(&mut self, _: &Template, bytes: u8, instruction: &mut Instruction) {
        let base = self.choices.pick(&self.pointers);
        instruction.set_memory_base(Register::RAX + u32::from(base.register));
        instruction.set_memory_index(vector_register(bytes, self.index_vector));
        let scale = self.choices.pick(&[1, 2, 4, 8]);
        instruction.set_memory_index_scale(scale);
        set_displacement(instruction, self.choices.below(64) as i64 - 32, 8);
    }

    fn absolute(&mut self, template: &Template) -> u64 {
        let access = self.access(template);
        self.target(access)
    }

    fn immediate(&mut self, bits: u32) -> i64 {
        match (bits, self.choices.byte()) {
            (8, _) => i64::from(self.choices.byte() as i8),
            (_, 0..=99) => i64::from(self.choices.byte() as i8),
            (_, _) => values::integer(&mut self.choices) as i64,
        }
    }

    fn mask(&mut self, required: bool) -> u32 {
        if required || self.choices.chance(110) { 1 + self.choices.below(7) as u32 } else { 0 }
    }

    fn decorate(&mut self, of: usize) -> bool {
        self.choices.below(of) == of - 1
    }
}

impl Writer<'_, '_> {
    fn access(&mut self, template: &Template) -> Access {
        let random_offset = matches!(template.operands[0], Operand::Memory) && template.lock;
        Access {
            bytes: u64::from(template.memory_bytes).max(1),
            alignment: u64::from(template.alignment),
            written: template.memory_written || self.prepared,
            strict: random_offset || template.code.mnemonic() == iced_x86::Mnemonic::Xchg,
        }
    }

    /// An address for an access: mostly memory that is there.
    fn target(&mut self, access: Access) -> u64 {
        if let Some(target) = self.forced_target {
            return target;
        }
        let start = self.layout.data();
        let last = DATA_BYTES - access.bytes;
        let border = PAGE_SIZE - access.bytes / 2;
        let address = match self.choices.byte() {
            0..=149 => start + HOT_START + self.choices.below(HOT_BYTES) as u64,
            150..=179 => start + self.choices.below(last as usize + 1) as u64,
            180..=191 => start + border,
            192..=199 => start + last,
            200..=209 => self.layout.stack() + self.choices.below(0x400) as u64,
            210..=219 if self.alias_live => {
                self.layout.alias() + HOT_START + self.choices.below(HOT_BYTES) as u64
            }
            220..=239 if !access.written => {
                self.layout.constants() + 0x100 + self.choices.below(0x800) as u64
            }
            240..=242 => return self.bad_target(access),
            _ => start + PAGE_SIZE + self.choices.below(HOT_BYTES) as u64,
        };
        let misaligned = !access.strict && self.choices.rarely(300);
        if misaligned { address } else { address & !(access.alignment - 1) }
    }

    /// An address where something goes wrong, most likely.
    fn bad_target(&mut self, access: Access) -> u64 {
        let end = self.layout.data() + DATA_BYTES;
        match self.choices.byte() {
            0..=99 if !access.strict => end - access.bytes / 2,
            0..=149 => end + self.choices.below(64) as u64,
            150..=169 => self.layout.data().wrapping_sub(8),
            170..=199 => self.layout.constants() + 0x40,
            200..=219 => self.layout.code,
            220..=234 => 0,
            235..=244 => 0x8000_0000_0000,
            _ => 0xffff_8000_0000_0000,
        }
    }

    /// Fills in an address that comes to `target`.
    fn reach(&mut self, target: u64, narrow: bool, free: bool, instruction: &mut Instruction) {
        // MOVDIR64B addresses both its places alike.
        let low = self.layout.is_low() && target < 1 << 31 && free;
        match self.choices.byte() {
            0..=99 => self.reach_by_pointer(target, false, narrow, instruction),
            100..=159 => self.reach_by_pointer(target, true, narrow, instruction),
            160..=184 if !self.relocated && !narrow && self.reaches(target) => {
                instruction.set_memory_base(Register::RIP);
                set_displacement(instruction, target as i64, 8);
            }
            185..=204 if !narrow => self.reach_by_segment(target, instruction),
            205..=224 if free && !narrow => self.reach_by_free_register(target, instruction),
            225..=234 if low => {
                let size = self.choices.pick(&[4, 8]);
                instruction.set_memory_displ_size(size);
                instruction.set_memory_displacement64(target);
            }
            235..=246 if low => self.reach_by_pointer(target, true, true, instruction),
            247..=255 if low && !narrow => {
                let index = self.index;
                instruction.set_memory_index(Register::RAX + u32::from(index.register));
                let scale = self.choices.pick(&[1, 2, 4, 8]);
                instruction.set_memory_index_scale(scale);
                let offset = index.value.wrapping_mul(u64::from(scale));
                set_displacement(instruction, target.wrapping_sub(offset) as i64, 8);
            }
            _ => self.reach_by_pointer(target, false, narrow, instruction),
        }
    }

    fn reach_by_pointer(
        &mut self,
        target: u64,
        indexed: bool,
        narrow: bool,
        instruction: &mut Instruction,
    ) {
        let base = self.choices.pick(&self.pointers);
        let first = if narrow { Register::EAX } else { Register::RAX };
        let mut rest = target.wrapping_sub(base.value);
        instruction.set_memory_base(first + u32::from(base.register));
        if indexed {
            let scale = self.choices.pick(&[1, 2, 4, 8]);
            instruction.set_memory_index(first + u32::from(self.index.register));
            instruction.set_memory_index_scale(scale);
            rest = rest.wrapping_sub(self.index.value.wrapping_mul(u64::from(scale)));
        }
        if i32::try_from(rest as i64).is_err() {
            // Only a bad target is that far: any address will do that a register can have.
            rest = rest as i32 as i64 as u64;
        }
        set_displacement(instruction, rest as i64, if narrow { 4 } else { 8 });
    }

    /// Above what was pushed, whatever RSP is.
    fn reach_by_stack_pointer(&mut self, instruction: &mut Instruction) {
        instruction.set_memory_base(Register::RSP);
        let displacement = 0x20 + self.choices.below(64) as i64 * 8;
        set_displacement(instruction, displacement, 8);
    }

    /// By the FS or GS base, which points into the data.
    fn reach_by_segment(&mut self, target: u64, instruction: &mut Instruction) {
        let which = self.choices.below(2);
        let rest = target.wrapping_sub(self.segment_bases[which]) as i64;
        if i32::try_from(rest).is_err() || !self.swarm.has(super::family::Family::SegmentBase) {
            return self.reach_by_pointer(target, false, false, instruction);
        }
        instruction.set_segment_prefix([Register::FS, Register::GS][which]);
        if self.choices.chance(128) {
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(rest as u64);
        } else {
            instruction.set_memory_base(Register::RAX + u32::from(self.index.register));
            set_displacement(instruction, rest.wrapping_sub(self.index.value as i64), 8);
        }
    }

    /// By a register that is set just before.
    fn reach_by_free_register(&mut self, target: u64, instruction: &mut Instruction) {
        let mut number = self.choices.below(16) as u32;
        while self.pinned >> number & 1 != 0 {
            number = (number + 1) % 16;
        }
        let displacement = i64::from(self.choices.byte() as i8);
        self.load(number as u8, target.wrapping_sub(displacement as u64));
        instruction.set_memory_base(Register::RAX + number);
        set_displacement(instruction, displacement, 8);
    }
}

/// Sets a displacement in the shortest way that holds it; the encoder compresses it for EVEX.
fn set_displacement(instruction: &mut Instruction, displacement: i64, long: u32) {
    let size = match displacement {
        0 => 0,
        -128..=127 => 1,
        _ => long,
    };
    let rip = instruction.memory_base() == Register::RIP;
    instruction.set_memory_displ_size(if rip { 8 } else { size });
    // With 32-bit addressing the displacement has 32 bits.
    let value = if long == 4 && size != 0 && !rip && instruction.memory_base() != Register::None {
        u64::from(displacement as u32)
    } else {
        displacement as u64
    };
    instruction.set_memory_displacement64(value);
}

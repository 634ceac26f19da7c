//! Control flow: bounded loops, forward branches, calls, returns, switches.

use iced_x86::{Code, Instruction, MemoryOperand, Register};

use super::layout::CONSTANTS;
use super::operand::Operand;
use super::template::{Special, Template};
use super::writer::Writer;

/// Bytes after which a body that a short branch skips ends.
const SHORT_BODY: usize = 48;
/// Conditional branches, by some of the flags.
const CONDITIONS: [Code; 8] = [
    Code::Jo_rel32_64,
    Code::Jb_rel32_64,
    Code::Jae_rel32_64,
    Code::Je_rel32_64,
    Code::Jne_rel32_64,
    Code::Jp_rel32_64,
    Code::Jnp_rel32_64,
    Code::Jle_rel32_64,
];

impl Writer<'_, '_> {
    /// Emits a branch, call or return of the template's form with something for it to do.
    pub(super) fn control(&mut self, template: &Template) {
        self.depth += 1;
        match template.special {
            Special::Conditional | Special::Jump => self.skip(template),
            Special::Call => self.call_direct(template),
            Special::CallIndirect => self.call_indirect(template),
            Special::JumpIndirect => self.jump_indirect(template),
            _ => self.return_forward(template),
        }
        self.depth -= 1;
    }

    /// A forward branch over a few instructions.
    fn skip(&mut self, template: &Template) {
        let short = template.code.op_code().op_kinds()[0] == iced_x86::OpCodeOperandKind::br64_1;
        let mut fixups = vec![self.emit_branch(template.code, if short { 1 } else { 4 })];
        if template.special == Special::Conditional && !short && self.choices.chance(64) {
            // More right behind it.
            for _ in 0..1 + self.choices.below(3) {
                let code = self.choices.pick(&CONDITIONS);
                fixups.push(self.emit_branch(code, 4));
            }
        }
        if template.special == Special::Jump && self.choices.chance(128) {
            let count = self.choices.below(12);
            self.emit_junk(count);
        } else {
            let count = 1 + self.choices.below(3);
            self.uncertain(|writer| writer.body(count, SHORT_BODY));
        }
        for fixup in fixups {
            self.bind(fixup);
        }
    }

    /// A branch forward that may be taken in some passes of a loop and not in others.
    pub(super) fn skip_sometimes(&mut self) {
        let code = self.choices.pick(&CONDITIONS);
        let fixup = self.emit_branch(code, 4);
        let count = 1 + self.choices.below(3);
        self.uncertain(|writer| writer.body(count, SHORT_BODY));
        self.bind(fixup);
    }

    /// Runs `emit` on code that may be left out by a run that comes to the end.
    pub(super) fn uncertain(&mut self, emit: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.certain, false);
        emit(self);
        self.certain = before;
    }

    /// A few instructions without control flow, fewer if they get longer than `most` bytes.
    fn body(&mut self, count: usize, most: usize) {
        let start = self.length();
        for _ in 0..count {
            if self.length() - start < most {
                let before = std::mem::replace(&mut self.depth, 2);
                self.unit();
                self.depth = before;
            }
        }
    }

    /// A function body with its return.
    fn function(&mut self) {
        let before = std::mem::replace(&mut self.balanced, true);
        let count = 1 + self.choices.below(3);
        self.body(count, SHORT_BODY);
        self.balanced = before;
        if self.choices.chance(60) {
            let bytes = self.choices.below(4) as u32 * 8;
            self.emit_made(Instruction::with1(Code::Retnq_imm16, bytes));
        } else {
            self.emit(&Instruction::with(Code::Retnq));
        }
    }

    fn call_direct(&mut self, template: &Template) {
        if self.choices.chance(128) {
            // Forward, with the function behind a jump.
            let call = self.emit_branch(template.code, 4);
            let over = self.emit_branch(Code::Jmp_rel32_64, 4);
            self.bind(call);
            self.function();
            self.bind(over);
        } else {
            let function = self.skipped_function();
            let times = 1 + self.choices.below(2);
            for _ in 0..times {
                self.emit_backward(template.code, function);
            }
        }
    }

    /// A function behind a jump over it: its address.
    fn skipped_function(&mut self) -> u64 {
        let over = self.emit_branch(Code::Jmp_rel32_64, 4);
        let function = self.address();
        self.function();
        self.bind(over);
        function
    }

    fn call_indirect(&mut self, template: &Template) {
        let function = self.skipped_function();
        if template.operands[0] == Operand::Memory {
            let slot = self.slot(function);
            let call = self.with_target(template, slot);
            self.emit(&call);
        } else {
            let register = self.free_register();
            self.load(register, function);
            self.emit_made(Instruction::with1(template.code, Register::RAX + u32::from(register)));
        }
    }

    /// A word of the constants page that holds a code address: where it is.
    fn slot(&mut self, value: u64) -> u64 {
        self.slots.push(value);
        debug_assert_eq!(CONSTANTS.0, 2);
        self.layout.constants() + (self.slots.len() as u64 - 1) * 8
    }

    fn free_register(&mut self) -> u8 {
        let mut number = self.choices.below(16) as u8;
        while self.pinned >> number & 1 != 0 {
            number = (number + 1) % 16;
        }
        number
    }

    fn jump_indirect(&mut self, template: &Template) {
        if template.operands[0] == Operand::Memory {
            return self.switch(template);
        }
        let register = self.free_register();
        let register = Register::RAX + u32::from(register);
        let target = self.emit_open_lea(register);
        self.emit_made(Instruction::with1(template.code, register));
        let count = self.choices.below(8);
        self.emit_junk(count);
        self.bind(target);
    }

    /// A jump by a table in the constants page, to one of four places that the data choose.
    fn switch(&mut self, template: &Template) {
        if self.slots.len() > 24 || self.relocated {
            return;
        }
        let number = self.free_register();
        let selector = Register::RAX + u32::from(number);
        let low = Register::EAX + u32::from(number);
        self.emit_made(Instruction::with2(Code::And_rm32_imm8, low, 3));
        let first = self.slots.len();
        let table = self.slot(0);
        for _ in 1..4 {
            self.slot(0);
        }
        let base = self.pointers[0];
        let distance = table.wrapping_sub(base.value) as i64;
        if self.pinned >> base.register & 1 == 0 || i32::try_from(distance).is_err() {
            return;
        }
        let base = Register::RAX + u32::from(base.register);
        let operand =
            MemoryOperand::with_base_index_scale_displ_size(base, selector, 8, distance, 8);
        self.emit_made(Instruction::with1(template.code, operand));
        self.uncertain(|writer| writer.blocks(first));
    }

    fn blocks(&mut self, first: usize) {
        let mut ends = [None; 3];
        for (block, place) in ends.iter_mut().enumerate() {
            self.slots[first + block] = self.address();
            self.body(1, SHORT_BODY);
            *place = Some(self.emit_branch(Code::Jmp_rel32_64, 4));
        }
        self.slots[first + ends.len()] = self.address();
        self.body(1, SHORT_BODY);
        for end in ends.into_iter().flatten() {
            self.bind(end);
        }
    }

    /// A pushed address and a return to it.
    fn return_forward(&mut self, template: &Template) {
        let register = self.free_register();
        let register = Register::RAX + u32::from(register);
        let target = self.emit_open_lea(register);
        self.emit_made(Instruction::with1(Code::Push_r64, register));
        if template.count == 1 {
            let bytes = self.choices.below(4) as u32 * 8;
            self.emit_made(Instruction::with1(template.code, bytes));
        } else {
            self.emit(&Instruction::with(template.code));
        }
        let count = self.choices.below(8);
        self.emit_junk(count);
        self.bind(target);
    }

    /// A loop that runs a known number of times.
    pub(super) fn bounded_loop(&mut self) {
        let counter = self.counter();
        let times = match self.choices.byte() {
            0..=199 => 1 + self.choices.below(4) as u64,
            200..=249 => 1 + self.choices.below(12) as u64,
            _ => 1 + self.choices.below(60) as u64,
        };
        self.load(counter, times);
        let (before, depth) = (self.pinned, self.depth);
        self.pinned |= 1 << counter;
        self.depth += 1;
        let top = self.address();
        let count = 1 + self.choices.below(4);
        for _ in 0..count {
            self.unit();
        }
        self.count_down(counter, top);
        self.pinned = before;
        self.depth = depth;
    }

    /// A register that nothing writes but as an operand.
    pub(super) fn counter(&mut self) -> u8 {
        let mut number = 8 + self.choices.below(8) as u8;
        while self.pinned >> number & 1 != 0 {
            number = 8 + (number + 1) % 8;
        }
        number
    }

    /// The end of a loop.
    pub(super) fn count_down(&mut self, counter: u8, top: u64) {
        let register = Register::RAX + u32::from(counter);
        let decrement = match self.choices.byte() {
            0..=99 => Instruction::with1(Code::Dec_rm64, register),
            100..=179 => Instruction::with2(Code::Sub_rm64_imm8, register, 1),
            180..=219 => {
                // By way of RCX, as LOOP does it.
                let rcx = Register::RCX;
                self.emit_made(Instruction::with2(Code::Mov_r64_rm64, rcx, register));
                self.emit_made(Instruction::with1(Code::Dec_rm64, register));
                self.restore(0);
                if self.emit_backward(Code::Loop_rel8_64_RCX, top) {
                    self.restore(1 << 1);
                    return;
                }
                Instruction::with2(Code::Test_rm64_r64, register, register)
            }
            _ => Instruction::with2(Code::Add_rm64_imm8, register, -1),
        };
        self.emit_made(decrement);
        if !self.emit_backward(Code::Jne_rel8_64, top) {
            self.emit_backward(Code::Jne_rel32_64, top);
        }
    }
}

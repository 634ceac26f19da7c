//! Instructions with their surroundings: what must be set just before them so that they mean
//! something, and what must be set right again after them.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::build::{Picker, build, set_immediate};
use super::operand::Operand;
use super::refused::LEGACY_CALL;
use super::template::{Special, Template};
use super::values;
use super::writer::Writer;

impl Writer<'_, '_> {
    /// Emits an instruction of one of the case's families, with its surroundings.
    pub(super) fn unit(&mut self) {
        let family = self.swarm.pick(&mut self.choices);
        self.unit_of(family);
    }

    /// Emits an instruction of `family`.
    pub(super) fn unit_of(&mut self, family: super::family::Family) {
        let table = self.table;
        let members = table.members(family, self.baseline);
        if members.is_empty() {
            return;
        }
        if self.choices.rarely(500) {
            self.refuse();
        }
        for _ in 0..4 {
            let number = members[self.choices.below(members.len())];
            let template = &table.templates[usize::from(number)];
            if self.fits(template) {
                return self.special(template);
            }
        }
        self.emit(&Instruction::with(Code::Nopd));
    }

    /// Draws one of the forms that are refused, and counts it.
    fn refuse(&mut self) {
        let codes = &self.table.refused_codes;
        if !codes.is_empty() {
            let code = codes[self.choices.below(codes.len())];
            self.refused.extend(self.table.refusal(code));
        }
    }

    /// Whether an instruction may stand where the program now is.
    fn fits(&self, template: &Template) -> bool {
        let narrow = matches!(template.code, Code::Movdir64b_r32_m512);
        if narrow && !self.layout.is_low() {
            return false;
        }
        let control = matches!(
            template.special,
            Special::Conditional
                | Special::Jump
                | Special::Call
                | Special::JumpIndirect
                | Special::CallIndirect
                | Special::Return
        );
        if self.balanced && (template.code.is_stack_instruction() || control) {
            return false;
        }
        !(control && self.depth > 1)
    }

    fn special(&mut self, template: &Template) {
        match template.special {
            Special::Plain => self.plain(template),
            Special::Divide(signed) => self.divide(template, signed),
            Special::String => self.string(template),
            Special::Table | Special::MaskMove => self.fixed_pointer(template),
            Special::Enter | Special::Leave => self.frame(template),
            Special::BitString => self.bit_string(template),
            Special::ControlWord | Special::Mxcsr | Special::Image(_) => self.image(template),
            Special::PopFlags => self.pop_flags(template),
            Special::DirectStore => self.direct_store(template),
            Special::BaseWrite => self.base_write(template),
            Special::Conditional
            | Special::Jump
            | Special::Call
            | Special::JumpIndirect
            | Special::CallIndirect
            | Special::Return => self.control(template),
        }
    }

    fn plain(&mut self, template: &Template) {
        if template.mask_required && self.choices.chance(128) {
            self.fill_masks(template);
        }
        let mut instruction = build(template, self);
        if template.lock && self.choices.chance(40) {
            instruction.set_has_lock_prefix(true);
        }
        if template.code == Code::Int_imm8 && instruction.immediate8() == 0x80 {
            self.refused.push(LEGACY_CALL);
            return;
        }
        self.emit_or_plainer(template, instruction);
        self.restore(template.clobbers);
    }

    /// Emits what was built; if its operands do not go together, the same without high bytes.
    fn emit_or_plainer(&mut self, template: &Template, mut instruction: Instruction) {
        if self.try_emit(&instruction) {
            return;
        }
        for index in 0..instruction.op_count() {
            let register = instruction.op_register(index);
            if (Register::AH..=Register::BH).contains(&register) {
                let low = Register::AL + register.number() as u32 % 4;
                instruction.set_op_register(index, low);
            }
        }
        let emitted = self.try_emit(&instruction);
        debug_assert!(emitted, "{:?}: {instruction:?} does not encode", template.code);
    }

    /// Sets all opmask registers but K0, whose bits a gather has cleared.
    fn fill_masks(&mut self, template: &Template) {
        if !template.evex {
            return;
        }
        for mask in [Register::K1, Register::K2, Register::K3] {
            self.emit_made(Instruction::with3(Code::VEX_Kxnorw_kr_kr_kr, mask, mask, mask));
        }
    }

    fn build_prepared(&mut self, template: &Template) -> Instruction {
        self.prepared = true;
        let instruction = build(template, self);
        self.prepared = false;
        instruction
    }

    fn divide(&mut self, template: &Template, signed: bool) {
        let instruction = self.build_prepared(template);
        if self.choices.rarely(63500) {
            self.prepare_division(&instruction, template, signed);
        }
        self.emit_or_plainer(template, instruction);
        self.restore(template.clobbers);
    }

    fn prepare_division(&mut self, division: &Instruction, template: &Template, signed: bool) {
        let operand = template.operands[0];
        let bytes = match operand {
            Operand::Gpr(bytes) => bytes,
            _ => template.memory_bytes as u8,
        };
        let (or, kind, sign) = match bytes {
            1 => (Code::Or_rm8_imm8, OpKind::Immediate8, Code::Cbw),
            2 => (Code::Or_rm16_imm8, OpKind::Immediate8to16, Code::Cwd),
            4 => (Code::Or_rm32_imm8, OpKind::Immediate8to32, Code::Cdq),
            _ => (Code::Or_rm64_imm8, OpKind::Immediate8to64, Code::Cqo),
        };
        let mut nonzero = *division;
        nonzero.set_code(or);
        set_immediate(&mut nonzero, 1, kind, 1);
        if !self.try_emit(&nonzero) {
            return;
        }
        let (eax, edx) = (Register::EAX, Register::EDX);
        match (signed, bytes) {
            (true, _) => self.emit(&Instruction::with(sign)),
            (false, 1) => {
                self.emit_made(Instruction::with2(Code::Movzx_r32_rm8, eax, Register::AL));
            }
            (false, _) => self.emit_made(Instruction::with2(Code::Xor_r32_rm32, edx, edx)),
        }
    }

    fn string(&mut self, template: &Template) {
        let mut instruction = build(template, self);
        let repeat = template.repeat && self.choices.chance(160);
        if repeat {
            let count = match self.choices.byte() {
                0..=199 => self.choices.below(10) as u64,
                200..=251 => self.choices.below(40) as u64,
                _ => values::integer(&mut self.choices),
            };
            self.load(1, count);
            if self.choices.chance(128) && template.code.op_code().can_use_repne_prefix() {
                instruction.set_has_repne_prefix(true);
            } else {
                instruction.set_has_rep_prefix(true);
            }
        }
        let used = template.operands();
        let middle = self.layout.data() + 0x400;
        if used.contains(&Operand::Implicit(OpKind::MemorySegRSI)) {
            let source = middle + self.choices.below(0x800) as u64;
            self.load(6, source);
        }
        if used.contains(&Operand::Implicit(OpKind::MemoryESRDI)) {
            let destination = middle + self.choices.below(0x800) as u64;
            self.load(7, destination);
        }
        if self.layout.is_low() && self.choices.chance(64) {
            narrow_strings(&mut instruction);
        }
        self.emit(&instruction);
        self.restore(1 << 1 | 1 << 6 | 1 << 7);
    }

    fn fixed_pointer(&mut self, template: &Template) {
        let register = if template.special == Special::Table { 3 } else { 7 };
        let target = self.layout.data() + 0x200 + self.choices.below(0x100) as u64;
        self.load(register, target);
        self.plain(template);
        self.restore(1 << register);
    }

    /// ENTER and LEAVE with RBP in the stack page.
    fn frame(&mut self, template: &Template) {
        let frame = self.layout.stack() + 0x800 + self.choices.below(32) as u64 * 8;
        self.load(5, frame);
        let mut instruction = build(template, self);
        if template.special == Special::Enter {
            let (bytes, level) =
                (self.choices.below(64), self.choices.pick(&[0, 0, 1, 1, 2, 3, 9]));
            instruction.set_immediate16(bytes as u16 * 2);
            instruction.set_immediate8_2nd(level);
        }
        self.emit(&instruction);
        self.restore(1 << 5);
    }

    /// A bit offset in a register, small enough to stay in the page.
    fn bit_string(&mut self, template: &Template) {
        let Operand::Gpr(bytes) = template.operands[1] else { return self.plain(template) };
        let mut instruction = self.build_prepared(template);
        let (code, kind) = match bytes {
            2 => (Code::And_rm16_imm8, OpKind::Immediate8to16),
            4 => (Code::And_rm32_imm8, OpKind::Immediate8to32),
            _ => (Code::And_rm64_imm8, OpKind::Immediate8to64),
        };
        let mut bound = Instruction::default();
        bound.set_code(code);
        bound.set_op0_kind(OpKind::Register);
        bound.set_op0_register(instruction.op1_register());
        set_immediate(&mut bound, 1, kind, 0x7f);
        if self.choices.rarely(64500) {
            self.emit(&bound);
        }
        if template.lock && self.choices.chance(60) {
            instruction.set_has_lock_prefix(true);
        }
        self.emit(&instruction);
    }

    /// Loads of control registers and saved state, from an image that is put there before.
    fn image(&mut self, template: &Template) {
        let instruction = self.build_prepared(template);
        let mut store = instruction;
        match template.special {
            Special::ControlWord => {
                store.set_code(Code::Mov_rm16_imm16);
                let value = values::x87_control(&mut self.choices);
                set_immediate(&mut store, 1, OpKind::Immediate16, i64::from(value));
            }
            Special::Mxcsr => {
                store.set_code(Code::Mov_rm32_imm32);
                let value = values::mxcsr(&mut self.choices);
                set_immediate(&mut store, 1, OpKind::Immediate32, i64::from(value));
            }
            Special::Image(code) => store.set_code(code),
            _ => {}
        }
        self.emit(&store);
        if matches!(template.special, Special::Image(_)) && self.choices.chance(100) {
            self.unit();
        }
        self.emit(&instruction);
    }

    fn pop_flags(&mut self, template: &Template) {
        let flags = values::flags(&mut self.choices);
        let push = match template.code {
            Code::Popfw => Instruction::with1(Code::Push_imm16, flags as u32 & 0xffff),
            _ => Instruction::with1(Code::Pushq_imm32, flags as u32 as i32),
        };
        self.emit_made(push);
        let instruction = build(template, self);
        self.emit(&instruction);
    }

    /// MOVDIR64B, whose register operand is an address.
    fn direct_store(&mut self, template: &Template) {
        let instruction = self.build_prepared(template);
        let place = self.layout.data() + 0x200 + self.choices.below(8) as u64 * 64;
        self.load(instruction.op0_register().number() as u8, place);
        self.emit(&instruction);
    }

    /// WRFSBASE and WRGSBASE, after which the base is where it was, or a little on.
    fn base_write(&mut self, template: &Template) {
        let instruction = self.build_prepared(template);
        let number = instruction.op0_register().number() as u8;
        let (which, restore) = match template.code {
            Code::Wrfsbase_r32 | Code::Wrfsbase_r64 => (0, Code::Wrfsbase_r64),
            _ => (1, Code::Wrgsbase_r64),
        };
        let base = self.segment_bases[which];
        let distance = u64::from(self.choices.byte() & 3) * 64;
        let wide = template.code == restore;
        let value = base + distance;
        self.load(number, if wide || self.layout.is_low() { value } else { value & 0x7fff_ffff });
        self.emit(&instruction);
        if !wide {
            self.load(number, base);
            self.emit_made(Instruction::with1(restore, Register::RAX + u32::from(number)));
        }
    }

    /// Pushes a known register and takes it back into another.
    pub(super) fn push_and_pop(&mut self) {
        let from = self.choices.below(16) as u32;
        self.emit_made(Instruction::with1(Code::Push_r64, Register::RAX + from));
        if self.choices.chance(128) {
            self.unit_balanced();
        }
        let to = self.gpr(8, true);
        self.emit_made(Instruction::with1(Code::Pop_r64, to));
    }

    /// An instruction that leaves the stack and the flow alone.
    pub(super) fn unit_balanced(&mut self) {
        let before = std::mem::replace(&mut self.balanced, true);
        self.unit();
        self.balanced = before;
    }

    /// A memory operand at a known address that the program reads as a code address.
    pub(super) fn with_target(&mut self, template: &Template, target: u64) -> Instruction {
        self.forced_target = Some(target);
        let instruction = build(template, self);
        self.forced_target = None;
        instruction
    }
}

/// String operands by ESI and EDI.
fn narrow_strings(instruction: &mut Instruction) {
    for place in 0..instruction.op_count() {
        let kind = match instruction.op_kind(place) {
            OpKind::MemorySegRSI => OpKind::MemorySegESI,
            OpKind::MemoryESRDI => OpKind::MemoryESEDI,
            other => other,
        };
        instruction.set_op_kind(place, kind);
    }
}

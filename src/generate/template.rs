//! [`Template`]: all that is needed to make an instruction of one form, worked out once from iced's
//! tables, so that making one is a matter of picking operands.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, MemorySize,
    Mnemonic, OpAccess, OpCodeInfo, OpKind, Register,
};

use super::build::{SamplePicker, build};
use super::family::Family;
use super::form::{Form, OperandForm};
use super::operand::Operand;

/// What an instruction needs around it to make sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// Nothing.
    Plain,
    /// A dividend that fits; signed if true.
    Divide(bool),
    /// RSI, RDI, RCX.
    String,
    /// RBX.
    Table,
    /// RDI, as the destination of a masked move.
    MaskMove,
    /// RBP, as the frame that a nested ENTER copies from.
    Enter,
    /// RBP, as a frame.
    Leave,
    /// A bit offset that stays near.
    BitString,
    /// A loadable x87 control word.
    ControlWord,
    /// A loadable MXCSR.
    Mxcsr,
    /// An image made by this opcode at the same place.
    Image(Code),
    /// Flags on the stack.
    PopFlags,
    /// A 64-byte aligned address in the register operand.
    DirectStore,
    /// A canonical address in the register operand.
    BaseWrite,
    /// Conditional branch.
    Conditional,
    /// Unconditional branch.
    Jump,
    /// Direct call.
    Call,
    /// Indirect branch.
    JumpIndirect,
    /// Indirect call.
    CallIndirect,
    /// Near return.
    Return,
}

/// How to make an instruction of one form.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub code: Code,
    pub operand_form: OperandForm,
    pub family: Family,
    pub special: Special,
    pub operands: [Operand; 5],
    pub written: [bool; 5],
    pub count: usize,
    /// Bytes of the memory operand; zero where there is none or it is not accessed.
    pub memory_bytes: u16,
    /// What its address must be a multiple of, not to fault or to lock the whole bus.
    pub alignment: u16,
    pub memory_written: bool,
    /// General-purpose registers written without being an operand, a bit each.
    pub clobbers: u16,
    /// EVEX: registers 16 to 31 are there.
    pub evex: bool,
    pub legacy: bool,
    pub mask: bool,
    pub mask_required: bool,
    pub zeroing: bool,
    pub rounding: bool,
    pub suppress: bool,
    pub lock: bool,
    pub repeat: bool,
    pub unique: bool,
    /// Every x86-64 emulator of the last decade has it.
    pub baseline: bool,
}

impl Template {
    /// The template of one form; `None` where an operand is of a kind that user code does not have.
    pub(super) fn new(
        code: Code,
        operand_form: OperandForm,
        information: &mut InstructionInfoFactory,
    ) -> Option<Self> {
        let info = code.op_code();
        let mut operands = [Operand::One; 5];
        for (operand, kind) in operands.iter_mut().zip(info.op_kinds()) {
            *operand = Operand::of(*kind, operand_form)?;
        }
        let count = info.op_count() as usize;
        let register = operand_form == OperandForm::Register;
        let family = Family::of(code, info, &operands[..count]);
        let mut template = Self {
            code,
            operand_form,
            family,
            special: special(code, info, operand_form),
            operands,
            written: [false; 5],
            count,
            memory_bytes: 0,
            alignment: 1,
            memory_written: false,
            clobbers: 0,
            evex: info.encoding() == EncodingKind::EVEX,
            legacy: matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::D3NOW),
            mask: info.can_use_op_mask_register(),
            mask_required: info.require_op_mask_register(),
            zeroing: info.can_use_zeroing_masking() && !operands[0].is_memory(),
            rounding: info.can_use_rounding_control() && register,
            suppress: info.can_suppress_all_exceptions() && register,
            lock: info.can_use_lock_prefix() && operands[0].is_memory(),
            repeat: info.can_use_rep_prefix() || info.can_use_repne_prefix(),
            unique: info.requires_unique_reg_nums() || info.requires_unique_dest_reg_num(),
            baseline: is_baseline(code, info),
        };
        template.add_access(information);
        template.add_memory(info);
        Some(template)
    }

    /// The operands that it has.
    pub(super) fn operands(&self) -> &[Operand] {
        &self.operands[..self.count]
    }

    /// The form as people write it.
    pub(super) fn form(&self) -> Form {
        Form { code: self.code, operands: self.operand_form }
    }

    /// An instruction of this form with the plainest operands.
    pub(super) fn sample(&self) -> Instruction {
        build(self, &mut SamplePicker::default())
    }

    fn add_access(&mut self, information: &mut InstructionInfoFactory) {
        let sample = self.sample();
        let used = information.info(&sample);
        let writes = |access| {
            matches!(
                access,
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            )
        };
        for index in 0..self.count {
            self.written[index] = writes(used.op_access(index as u32));
            self.memory_written |= self.operands[index].is_memory() && self.written[index];
        }
        for register in used.used_registers().iter().filter(|register| writes(register.access())) {
            let full = register.register().full_register();
            let explicit = (0..sample.op_count()).any(|index| {
                sample.op_kind(index) == OpKind::Register
                    && sample.op_register(index).full_register() == full
                    && !matches!(self.operands[index as usize], Operand::Fixed(_))
            });
            if full.is_gpr64() && !explicit && full != Register::RSP {
                self.clobbers |= 1 << full.number();
            }
        }
    }

    fn add_memory(&mut self, info: &OpCodeInfo) {
        let size = match self.operand_form {
            OperandForm::Broadcast => info.broadcast_memory_size(),
            _ => info.memory_size(),
        };
        if size == MemorySize::Unknown || !self.operands().iter().any(|one| one.is_memory()) {
            return;
        }
        self.memory_bytes = size.size().max(1) as u16;
        if self.operand_form == OperandForm::Memory {
            self.alignment = alignment(self, info);
        }
    }
}

fn alignment(template: &Template, info: &OpCodeInfo) -> u16 {
    use Mnemonic as M;
    let size = template.memory_bytes;
    match info.mnemonic() {
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 | M::Cmpxchg16b => 16,
        M::Movups
        | M::Movupd
        | M::Movdqu
        | M::Lddqu
        | M::Pcmpestri
        | M::Pcmpestri64
        | M::Pcmpestrm
        | M::Pcmpestrm64
        | M::Pcmpistri
        | M::Pcmpistrm => 1,
        M::Vmovaps
        | M::Vmovapd
        | M::Vmovdqa
        | M::Vmovdqa32
        | M::Vmovdqa64
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdq
        | M::Vmovntdqa => size,
        // A locked access across two cache lines stops the whole machine, and Linux punishes it.
        M::Xchg => size,
        M::Vgf2p8mulb => 1,
        _ if template.lock => size.next_power_of_two(),
        _ if template.legacy && size == 16 && !is_x87(info) => 16,
        _ => 1,
    }
}

fn is_x87(info: &OpCodeInfo) -> bool {
    info.code().cpuid_features().contains(&CpuidFeature::FPU)
}

fn special(code: Code, info: &OpCodeInfo, operand_form: OperandForm) -> Special {
    use Mnemonic as M;
    match code.flow_control() {
        FlowControl::ConditionalBranch => return Special::Conditional,
        FlowControl::UnconditionalBranch => return Special::Jump,
        FlowControl::Call if info.op_kinds().len() == 1 => return Special::Call,
        FlowControl::IndirectBranch => return Special::JumpIndirect,
        FlowControl::IndirectCall => return Special::CallIndirect,
        FlowControl::Return => return Special::Return,
        _ => {}
    }
    let memory = operand_form == OperandForm::Memory;
    match code.mnemonic() {
        M::Div => Special::Divide(false),
        M::Idiv => Special::Divide(true),
        M::Xlatb => Special::Table,
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => Special::MaskMove,
        M::Enter => Special::Enter,
        M::Leave => Special::Leave,
        M::Bt | M::Bts | M::Btr | M::Btc if memory => Special::BitString,
        M::Fldcw => Special::ControlWord,
        M::Ldmxcsr | M::Vldmxcsr => Special::Mxcsr,
        M::Fldenv => Special::Image(match code {
            Code::Fldenv_m14byte => Code::Fnstenv_m14byte,
            _ => Code::Fnstenv_m28byte,
        }),
        M::Frstor => Special::Image(match code {
            Code::Frstor_m94byte => Code::Fnsave_m94byte,
            _ => Code::Fnsave_m108byte,
        }),
        M::Fxrstor => Special::Image(Code::Fxsave_m512byte),
        M::Fxrstor64 => Special::Image(Code::Fxsave64_m512byte),
        M::Popf | M::Popfd | M::Popfq => Special::PopFlags,
        M::Movdir64b => Special::DirectStore,
        M::Wrfsbase | M::Wrgsbase => Special::BaseWrite,
        _ if has_implicit_memory(info) => Special::String,
        _ => Special::Plain,
    }
}

fn has_implicit_memory(info: &OpCodeInfo) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    info.op_kinds().iter().any(|kind| matches!(kind, K::seg_rSI | K::es_rDI))
}

fn is_baseline(code: Code, info: &OpCodeInfo) -> bool {
    use CpuidFeature as F;
    info.encoding() == EncodingKind::Legacy
        && code.cpuid_features().iter().all(|feature| {
            matches!(
                feature,
                F::INTEL8086
                    | F::INTEL186
                    | F::INTEL286
                    | F::INTEL386
                    | F::INTEL486
                    | F::X64
                    | F::FPU
                    | F::FPU287
                    | F::FPU387
                    | F::CMOV
                    | F::CX8
                    | F::MMX
                    | F::SSE
                    | F::SSE2
                    | F::SSE3
                    | F::SSSE3
                    | F::SSE4_1
                    | F::SSE4_2
                    | F::FXSR
                    | F::CLFSH
                    | F::MULTIBYTENOP
                    | F::PAUSE
                    | F::AES
                    | F::PCLMULQDQ
                    | F::POPCNT
                    | F::MOVBE
                    | F::LZCNT
                    | F::BMI1
                    | F::CMPXCHG16B
                    | F::FSGSBASE
                    | F::PREFETCHW
            )
        })
}

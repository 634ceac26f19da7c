//! Instructions that the run loop executes itself: all that translated code does not, and what it
//! does in sequences of its own (stack, strings, control flow) when those cannot be used.

mod control;
mod operand;
mod segment;
mod stack;
mod string;
mod system;
mod vector;
mod xsave;

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

use super::exit::{Exit, vector as exceptions};
use super::shared::Locked;
use super::step::Undone;
use super::vcpu::Vcpu;
use crate::guest::Vendor;
use crate::translate::{Class, class_of};

impl Vcpu {
    /// Executes an instruction that is not of class `Plain`.
    pub(super) fn assist(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        match class_of(instruction) {
            Class::Undefined => Err(Exit::exception(exceptions::UD).into()),
            Class::Unsupported if !core.has_all(instruction.cpuid_features()) => {
                Err(Exit::exception(exceptions::UD).into())
            }
            Class::Unsupported => Err(Exit::Unsupported { what: UNKNOWN }.into()),
            Class::Absolute => self.absolute(core, instruction),
            Class::BitString => self.bit_string(core, instruction),
            Class::Table => self.table(core, instruction),
            Class::MaskMove => self.mask_move(core, instruction),
            Class::String => self.string(core, instruction),
            Class::Push | Class::Pop | Class::PushFlags | Class::PopFlags | Class::Leave => {
                self.stack(core, instruction)
            }
            Class::Jump
            | Class::Conditional
            | Class::CountedBranch
            | Class::Call
            | Class::JumpIndirect
            | Class::CallIndirect
            | Class::Return => self.control(core, instruction),
            Class::NarrowBranch => self.narrow_branch(core, instruction),
            Class::ReadBase => {
                self.read_base(instruction);
                Ok(())
            }
            _ => self.other(core, instruction),
        }
    }

    fn other(&mut self, core: &mut Locked<'_>, instruction: &Instruction) -> Result<(), Undone> {
        use Mnemonic as M;
        if is_rare(instruction) && !core.has_all(instruction.cpuid_features()) {
            // AMD's processors know the one even where a hypervisor keeps the others to itself.
            let known =
                instruction.mnemonic() == M::Invlpga && Vendor::of_this_host() == Vendor::Amd;
            let vector = if known { exceptions::GP } else { exceptions::UD };
            return Err(Exit::exception(vector).into());
        }
        match instruction.mnemonic() {
            M::Jmp | M::Call | M::Retf | M::Iret | M::Iretd | M::Iretq => {
                self.far(core, instruction)
            }
            M::Push | M::Pop | M::Pushf | M::Pushfq | M::Popf | M::Popfq | M::Leave | M::Enter => {
                self.stack(core, instruction)
            }
            M::Mov if instruction.is_privileged() => Err(Exit::general_protection().into()),
            M::Mov | M::Lss | M::Lfs | M::Lgs => self.segment(core, instruction),
            M::Wrfsbase | M::Wrgsbase => self.write_base(instruction),
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 => {
                self.xsave(core, instruction)
            }
            M::Xrstor | M::Xrstor64 => self.xrstor(core, instruction),
            M::Xgetbv => self.extended_control(core, instruction),
            M::Movdir64b => self.direct_store(core, instruction),
            _ if instruction.is_vsib() => self.gather_or_scatter(core, instruction),
            _ => self.system(core, instruction),
        }
    }
}

/// Privileged instructions that few processors have, and are undefined to the others.
fn is_rare(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    let features = instruction.cpuid_features();
    features.iter().any(|feature| {
        matches!(feature, F::SVM | F::SKINIT | F::SKINIT_or_SVM | F::KL | F::PCONFIG)
            || matches!(feature, F::RTM | F::HLE_or_RTM)
            || matches!(feature, F::WRMSRNS | F::MSRLIST | F::HRESET | F::INVLPGB)
            || matches!(feature, F::FRED | F::LKGS | F::SEV_SNP | F::TDX | F::MCOMMIT)
    })
}

const UNKNOWN: &str = "an instruction outside the whitelist";

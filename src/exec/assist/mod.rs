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
use crate::guest::{HostFeatures, Vendor};
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
            let vector = if is_only_hidden(instruction) { exceptions::GP } else { exceptions::UD };
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
        matches!(feature, F::SVM | F::SKINIT | F::SKINIT_or_SVM | F::KL | F::PCONFIG | F::TSE)
            || matches!(feature, F::RTM | F::HLE_or_RTM)
            || matches!(feature, F::WRMSRNS | F::MSRLIST | F::HRESET | F::INVLPGB)
            || matches!(feature, F::FRED | F::LKGS | F::SEV_SNP | F::RMPQUERY | F::TDX | F::MCOMMIT)
    })
}

/// Whether the processor knows the privileged instruction though a hypervisor says that it does not: AMD's run
/// every guest with EFER.SVME set (AMD64 Architecture Programmer's Manual volume 2, section 15.5.1), and look at the
/// privilege before they ask the hypervisor.
fn is_only_hidden(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let host = HostFeatures::of_this_host();
    host.vendor() == Vendor::Amd
        && host.has_hypervisor()
        && matches!(
            instruction.mnemonic(),
            M::Vmrun | M::Vmload | M::Vmsave | M::Stgi | M::Clgi | M::Skinit | M::Invlpga
        )
}

const UNKNOWN: &str = "an instruction outside the whitelist";

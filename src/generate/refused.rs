//! What is never generated although the host has it, and why. One table; what it takes away is
//! counted whenever it was about to be drawn.

use iced_x86::{Code, CpuidFeature, Mnemonic, OpCodeInfo, OpCodeOperandKind};

use super::HostFeatures;
use crate::guest::Vendor;

/// An instruction that was about to be generated and was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// Why, in words that are the same for each such instruction.
    pub reason: &'static str,
}

const BOUNDS: &str = "bounds registers are not part of the state";
const TILES: &str = "tile registers need the kernel's leave and are not part of the state";
const KEYS: &str = "protection keys are the host's own";
const TIME: &str = "reads or waits for time";
const RANDOM: &str = "random numbers";
const IDENTITY: &str = "tells the processor apart, so engines differ by design";
const SAVE: &str = "XSAVE state tracks what the processor itself has not touched since reset";
const TABLES: &str = "descriptor tables are the kernel's, which may emulate their reading (UMIP)";
const SEGMENTS: &str = "loads a segment register or code segment from the host's tables";
const KERNEL: &str = "another way into the host's kernel";
const TRANSACTION: &str = "transactions abort as they please";
const ACCELERATOR: &str = "reaches devices or traces of the host";
const SHADOW: &str = "shadow stacks are not part of the state";
const MACHINE: &str = "virtual machines, enclaves and keys belong to the host";
const TWO: &str = "two instructions: `wait` and the form without it";
const STRUCTURE: &str = "only generated as the end of a program or the trigger of an event";
const POINTERS: &str = "stores what the kernel loses of the x87 state at any time (AMD)";
const HIDDEN: &str = "the processor executes it though CPUID says that it has none";
const PREFIX: &str = "an encoding that the host's decoder reads as another one";

/// What is no instruction by the manuals, but for prefixes that it must not have.
pub(super) const IGNORED_PREFIX: Refusal =
    Refusal { reason: "some processors and hypervisors ignore a prefix that it must not have" };

/// `int 0x80`, whose number is an immediate and so not in the table of opcodes.
pub(super) const LEGACY_CALL: Refusal = Refusal { reason: KERNEL };

/// Why `code` is never generated; `None` if it is.
pub(super) fn refusal(code: Code, info: &OpCodeInfo, host: &HostFeatures) -> Option<Refusal> {
    let operands = info.op_kinds();
    let decoded = match host.vendor() {
        Vendor::Amd => info.amd_decoder64(),
        Vendor::Intel => info.intel_decoder64(),
    };
    let reason = by_mnemonic(code.mnemonic())
        .or_else(|| code.cpuid_features().iter().find_map(|feature| by_feature(*feature)))
        .or_else(|| is_segment_load(code, operands).then_some(SEGMENTS))
        .or_else(|| info.fwait().then_some(TWO))
        .or_else(|| loses_pointers(code, host.vendor()).then_some(POINTERS))
        .or_else(|| (!host.has_all(code.cpuid_features())).then_some(HIDDEN))
        .or_else(|| (!decoded).then_some(PREFIX))?;
    Some(Refusal { reason })
}

/// Whether a processor may execute `code` although its CPUID does not tell: hypervisors hide such
/// features, and nothing else keeps guests from them.
pub(super) fn may_be_hidden(code: Code) -> bool {
    use CpuidFeature as F;
    let hidden = [F::PTWRITE, F::ENQCMD, F::CLZERO, F::MONITORX, F::SEV_SNP];
    // KVM answers the hypercalls of both vendors from user code too, and may write the one over the other.
    let hypercall = matches!(code.mnemonic(), Mnemonic::Vmcall | Mnemonic::Vmmcall);
    hypercall || code.cpuid_features().iter().any(|feature| hidden.contains(feature))
}

fn by_feature(feature: CpuidFeature) -> Option<&'static str> {
    use CpuidFeature as F;
    Some(match feature {
        F::MPX => BOUNDS,
        F::AMX_TILE | F::AMX_INT8 | F::AMX_BF16 | F::AMX_FP16 | F::AMX_COMPLEX => TILES,
        F::PKU => KEYS,
        F::TSC | F::RDTSCP | F::RDPMC | F::WAITPKG | F::RDPRU | F::MONITORX | F::MONITOR => TIME,
        F::RDRAND | F::RDSEED => RANDOM,
        F::CPUID | F::RDPID => IDENTITY,
        F::XSAVE | F::XSAVEOPT | F::XSAVEC | F::XSAVES => SAVE,
        F::SEP => KERNEL,
        F::RTM | F::HLE_or_RTM | F::TSXLDTRK => TRANSACTION,
        F::ENQCMD | F::PTWRITE | F::LWP | F::UINTR => ACCELERATOR,
        F::CET_SS => SHADOW,
        F::VMX
        | F::SVM
        | F::SMX
        | F::SGX1
        | F::SKINIT
        | F::SKINIT_or_SVM
        | F::KL
        | F::AESKLE
        | F::WIDE_KL
        | F::TDX
        | F::SEV_ES
        | F::SEV_SNP => MACHINE,
        _ => return None,
    })
}

fn by_mnemonic(mnemonic: Mnemonic) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Rdpmc => TIME,
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw => {
            TABLES
        }
        M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs | M::Retf | M::Iret | M::Iretd | M::Iretq => {
            SEGMENTS
        }
        M::Hlt => STRUCTURE,
        _ => return None,
    })
}

/// Whether what the instruction stores depends on whether the kernel has saved the state since the last x87
/// instruction: AMD's processors save its address only while an exception is pending, and never its segment (AMD64
/// Architecture Programmer's Manual volume 5, "FXSAVE"). Those that load are generated with an image that those
/// that store have stored.
fn loses_pointers(code: Code, vendor: Vendor) -> bool {
    use Mnemonic as M;
    let stores = matches!(code.mnemonic(), M::Fnstenv | M::Fnsave | M::Fxsave | M::Fxsave64);
    let loads = matches!(code.mnemonic(), M::Fldenv | M::Frstor | M::Fxrstor | M::Fxrstor64);
    vendor == Vendor::Amd && (stores || loads)
}

fn is_segment_load(code: Code, operands: &[OpCodeOperandKind]) -> bool {
    use OpCodeOperandKind as K;
    let far = matches!(
        code,
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    );
    let pop = code.mnemonic() == Mnemonic::Pop && matches!(operands, [K::fs | K::gs]);
    let load = code.mnemonic() == Mnemonic::Mov && operands.first() == Some(&K::seg_reg);
    far || pop || load
}

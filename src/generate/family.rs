//! [`Family`]: a group of forms that a case takes part in or not. Cases that draw from few families
//! differ in character, which finds more than cases that all look the same (swarm testing).

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeInfo};

use super::choices::Choices;
use super::operand::Operand;

macro_rules! families {
    ($($name:ident: $text:literal, $weight:literal;)*) => {
        /// A group of forms; see the file's head.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "each has its description in `text`")]
        pub enum Family { $($name),* }

        impl Family {
            /// Every family.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// What is in it.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// How often it is among those of a case.
            fn weight(self) -> u8 {
                match self { $(Self::$name => $weight),* }
            }
        }
    };
}

families! {
    Arithmetic: "integer arithmetic and logic", 12;
    Move: "moves and extensions of integers", 8;
    Shift: "shifts and rotations", 8;
    Bit: "bit tests, scans and counts", 6;
    Divide: "division", 3;
    Conditional: "conditional moves and sets", 5;
    String: "string instructions", 5;
    Stack: "pushes, pops, frames", 5;
    Flag: "flag instructions", 3;
    Atomic: "exchanges, compare-and-exchange, LOCK", 5;
    Branch: "branches, calls, returns", 4;
    X87: "x87 arithmetic", 7;
    X87State: "x87 and SSE control and state", 3;
    Mmx: "MMX", 6;
    SseFloat: "SSE floating point", 8;
    SseInteger: "SSE integer", 8;
    Crypto: "AES, CLMUL, SHA, GFNI in legacy encoding", 4;
    Cache: "prefetches, fences, non-temporal and wide stores, no-ops", 3;
    SegmentBase: "FS and GS bases, segment selectors", 2;
    System: "privileged, undefined and interrupting instructions", 1;
    Bmi: "BMI and other VEX forms on general-purpose registers", 5;
    Avx: "AVX, AVX2, F16C, VAES", 9;
    Fma: "fused multiply-add", 4;
    Avx512: "AVX-512", 16;
    Avx512Half: "AVX-512 half precision", 7;
    Opmask: "opmask registers", 4;
    Gather: "gathers and scatters", 3;
}

impl Family {
    /// The family of a form.
    pub(super) fn of(code: Code, info: &OpCodeInfo, operands: &[Operand]) -> Self {
        if is_system(code, info) {
            return Self::System;
        }
        if operands.iter().any(|operand| matches!(operand, Operand::Vsib(_))) {
            return Self::Gather;
        }
        let has = |select: fn(&Operand) -> bool| operands.iter().any(select);
        match info.encoding() {
            EncodingKind::EVEX if code.cpuid_features().contains(&CpuidFeature::AVX512_FP16) => {
                Self::Avx512Half
            }
            EncodingKind::EVEX => Self::Avx512,
            EncodingKind::VEX | EncodingKind::XOP => {
                if has(|operand| matches!(operand, Operand::Opmask)) {
                    Self::Opmask
                } else if code.cpuid_features().contains(&CpuidFeature::FMA) {
                    Self::Fma
                } else if has(|operand| matches!(operand, Operand::Gpr(_)))
                    && !has(|operand| matches!(operand, Operand::Vector(_)))
                {
                    Self::Bmi
                } else {
                    Self::Avx
                }
            }
            _ => Self::of_legacy(code, info, operands),
        }
    }

    fn of_legacy(code: Code, info: &OpCodeInfo, operands: &[Operand]) -> Self {
        use CpuidFeature as F;
        let features = code.cpuid_features();
        let needs = |list: &[F]| features.iter().any(|feature| list.contains(feature));
        if code.flow_control() != FlowControl::Next {
            Self::Branch
        } else if is_control(code, info) {
            Self::X87State
        } else if needs(&[F::AES, F::PCLMULQDQ, F::SHA, F::GFNI]) {
            Self::Crypto
        } else if needs(&[F::FPU, F::FPU287, F::FPU387]) {
            Self::X87
        } else if operands.iter().any(|operand| matches!(operand, Operand::Mmx)) {
            Self::Mmx
        } else if info.is_non_temporal() {
            Self::Cache
        } else if operands.iter().any(|operand| matches!(operand, Operand::Vector(_))) {
            if is_packed_integer(code) { Self::SseInteger } else { Self::SseFloat }
        } else {
            Self::of_integer(code.mnemonic(), info)
        }
    }

    fn of_integer(mnemonic: Mnemonic, info: &OpCodeInfo) -> Self {
        use Mnemonic as M;
        let text = info.instruction_string();
        match mnemonic {
            M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => Self::SegmentBase,
            M::Mov if text.contains("Sreg") => Self::SegmentBase,
            M::Movsb
            | M::Movsw
            | M::Movsd
            | M::Movsq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsd
            | M::Cmpsq => Self::String,
            M::Div | M::Idiv => Self::Divide,
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b | M::Xadd | M::Xchg => Self::Atomic,
            M::Lahf
            | M::Sahf
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Cld
            | M::Std
            | M::Pushf
            | M::Pushfd
            | M::Pushfq
            | M::Popf
            | M::Popfd
            | M::Popfq => Self::Flag,
            _ if info.is_stack_instruction() => Self::Stack,
            M::Shl
            | M::Shr
            | M::Sal
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd => Self::Shift,
            M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Crc32
            | M::Bswap
            | M::Movbe => Self::Bit,
            M::Nop
            | M::Pause
            | M::Lfence
            | M::Mfence
            | M::Sfence
            | M::Serialize
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            | M::Cldemote
            | M::Movdiri
            | M::Movdir64b
            | M::Reservednop
            | M::Endbr32
            | M::Endbr64 => Self::Cache,
            _ if text.starts_with("PREFETCH") => Self::Cache,
            _ if text.starts_with("CMOV") || text.starts_with("SET") => Self::Conditional,
            M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Lea
            | M::Xlatb
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo => Self::Move,
            _ => Self::Arithmetic,
        }
    }
}

fn is_system(code: Code, info: &OpCodeInfo) -> bool {
    let interrupts = matches!(code.flow_control(), FlowControl::Interrupt | FlowControl::Exception)
        || code == Code::Syscall;
    interrupts || !info.cpl3() || info.is_privileged() || info.is_input_output()
}

fn is_control(code: Code, info: &OpCodeInfo) -> bool {
    use Mnemonic as M;
    info.is_save_restore()
        || matches!(
            code.mnemonic(),
            M::Fldenv
                | M::Fnstenv
                | M::Fldcw
                | M::Fnstcw
                | M::Fnsave
                | M::Frstor
                | M::Ldmxcsr
                | M::Stmxcsr
                | M::Fxsave
                | M::Fxsave64
                | M::Fxrstor
                | M::Fxrstor64
                | M::Fninit
                | M::Fnclex
                | M::Emms
        )
}

fn is_packed_integer(code: Code) -> bool {
    let name = format!("{:?}", code.mnemonic());
    name.starts_with('P') || name.starts_with("Movdq") || ["Movd", "Movq"].contains(&name.as_str())
}

/// The families of one case with the share of each.
#[derive(Debug)]
pub(super) struct Swarm {
    members: [Family; Self::MOST],
    /// Where the share of each ends, of `total`.
    ends: [u16; Self::MOST],
    count: usize,
    total: u16,
}

impl Swarm {
    const MOST: usize = 10;
    const ALL_FAMILIES: usize = Family::ALL.len();

    /// Draws one to ten of `families`, each with a weight of its own.
    pub(super) fn draw(choices: &mut Choices, families: &[Family]) -> Self {
        let (members, ends) = ([families[0]; Self::MOST], [u16::MAX; Self::MOST]);
        let mut swarm = Self { members, ends, count: 0, total: 0 };
        // Where each family's share ends. To count the ends that lie before a number is faster than to look
        // for the first that does not: how far a search goes is chance, which no processor foresees.
        let mut ends = [u16::MAX; Self::ALL_FAMILIES];
        let mut sum = 0;
        for (end, family) in ends.iter_mut().zip(families) {
            sum += u16::from(family.weight());
            *end = sum;
        }
        let wanted = 1 + choices.below(Self::MOST);
        for _ in 0..wanted {
            let drawn = choices.below(usize::from(sum)) as u16;
            let drawn = ends.iter().filter(|end| **end <= drawn).count();
            let weight = 1 + choices.below(8) as u16;
            swarm.total += weight;
            swarm.members[swarm.count] = families[drawn];
            swarm.ends[swarm.count] = swarm.total;
            swarm.count += 1;
        }
        swarm
    }

    /// One of its families, by weight.
    pub(super) fn pick(&self, choices: &mut Choices) -> Family {
        let roll = choices.below(usize::from(self.total)) as u16;
        self.members[self.ends.iter().filter(|end| **end <= roll).count()]
    }

    /// Whether `family` takes part.
    pub(super) fn has(&self, family: Family) -> bool {
        self.members[..self.count].contains(&family)
    }
}

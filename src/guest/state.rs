//! [`State`]: everything that 64-bit user code can see of its processor, memory apart.

use serde::{Deserialize, Serialize};

use super::flags::RFLAGS_DEFAULT;

/// Names of the general-purpose registers in encoding order, which is the order of [`State::gpr`].
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Names of the segment selectors in encoding order, which is the order of [`Selectors`].
pub const SELECTOR_NAMES: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Number of vector registers (ZMM0–ZMM31).
pub const VECTOR_COUNT: usize = 32;

/// Number of opmask registers (K0–K7).
pub const OPMASK_COUNT: usize = 8;

/// MXCSR after reset: all exceptions masked, round to nearest.
pub const MXCSR_DEFAULT: u32 = 0x1f80;

/// The x87 control word after FNINIT: all exceptions masked, extended precision, to nearest.
pub const X87_CONTROL_DEFAULT: u16 = 0x037f;

/// PKRU as Linux gives it to a new process: no access by any protection key but key 0.
pub const PKRU_DEFAULT: u32 = 0x5555_5554;

/// A 512-bit vector register as eight 64-bit words, the lowest first.
pub type Vector = [u64; 8];

/// An 80-bit extended-precision value as it lies in an x87 or MMX register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct F80 {
    /// Bits 63–0: the significand, and the MMX register.
    pub significand: u64,
    /// Bits 79–64: sign and biased exponent.
    pub sign_exponent: u16,
}

/// The x87 unit as FXSAVE64 stores it (Intel SDM volume 1, section 10.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct X87 {
    /// Control word.
    pub control: u16,
    /// Status word, the top of stack in bits 13–11 included.
    pub status: u16,
    /// Abridged tag word: bit *i* is set where *physical* register *i* is not empty.
    pub tag: u8,
    /// Opcode of the last non-control instruction (11 bits).
    pub opcode: u16,
    /// Address of the last non-control instruction.
    pub instruction_pointer: u64,
    /// Address of the last memory operand.
    pub data_pointer: u64,
    /// ST(0)–ST(7), relative to the top of stack.
    pub st: [F80; 8],
}

impl Default for X87 {
    fn default() -> Self {
        Self {
            control: X87_CONTROL_DEFAULT,
            status: 0,
            tag: 0,
            opcode: 0,
            instruction_pointer: 0,
            data_pointer: 0,
            st: [F80::default(); 8],
        }
    }
}

impl X87 {
    /// The physical number of the register that is ST(0).
    #[must_use]
    pub fn top(&self) -> usize {
        usize::from(self.status >> 11 & 7)
    }

    /// Whether an exception waits for the next instruction that looks for such: one that was noted and is not
    /// masked.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        const EXCEPTIONS: u16 = 0x3f;
        self.status & !self.control & EXCEPTIONS != 0
    }
}

/// The visible parts of the segment registers, in encoding order: ES CS SS DS FS GS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selectors(pub [u16; 6]);

impl Default for Selectors {
    /// What Linux gives to a 64-bit process.
    fn default() -> Self {
        Self([0, 0x33, 0x2b, 0, 0, 0])
    }
}

/// Everything that 64-bit user code can see of its processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct State {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8–R15.
    pub gpr: [u64; 16],
    /// Address of the next instruction.
    pub rip: u64,
    /// RFLAGS without RF and the virtual-8086 bits, which user code cannot see.
    pub rflags: u64,
    /// Base of the FS segment.
    pub fs_base: u64,
    /// Base of the GS segment.
    pub gs_base: u64,
    /// Segment selectors.
    pub selectors: Selectors,
    /// Protection key rights.
    pub pkru: u32,
    /// The x87 unit and MMX registers.
    pub x87: X87,
    /// Control and status of SSE arithmetic.
    pub mxcsr: u32,
    /// ZMM0–ZMM31; XMM and YMM are their low parts.
    pub vector: [Vector; VECTOR_COUNT],
    /// K0–K7.
    pub opmask: [u64; OPMASK_COUNT],
}

impl Default for State {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: RFLAGS_DEFAULT,
            fs_base: 0,
            gs_base: 0,
            selectors: Selectors::default(),
            pkru: PKRU_DEFAULT,
            x87: X87::default(),
            mxcsr: MXCSR_DEFAULT,
            vector: [[0; 8]; VECTOR_COUNT],
            opmask: [0; OPMASK_COUNT],
        }
    }
}

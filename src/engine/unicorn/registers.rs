//! [`RegisterFile`]: a guest's registers in the shape in which Unicorn takes and gives them, and
//! the way between that and [`State`].
//!
//! Unicorn's `FPn` are physical registers, its tag word is the full one of two bits a register, and
//! its status word holds the top of stack; [`State`] has registers relative to the top and FXSAVE's
//! abridged tag.

use std::ffi::{c_int, c_void};
use std::ptr;

use unicorn_engine::RegisterX86 as Register;

use crate::guest::{F80, GPR_NAMES, State};

/// Vector registers that Unicorn can show.
pub(super) const VECTORS: usize = 16;
const WORDS: usize = GPR_NAMES.len() + 4;

/// RF, VM, VIF and VIP: bits of RFLAGS that [`State::rflags`] does not have.
const HIDDEN_FLAGS: u64 = 1 << 16 | 1 << 17 | 1 << 19 | 1 << 20;

/// How many registers are passed.
pub(super) const REGISTER_COUNT: usize = WORDS + VECTORS + 8 + 4;

/// Their numbers, in the order of [`RegisterFile::places`].
pub(super) static REGISTER_NUMBERS: [c_int; REGISTER_COUNT] = register_numbers();

/// General-purpose registers in the order of their encoding.
pub(crate) const GPR: [Register; GPR_NAMES.len()] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

const fn register_numbers() -> [c_int; REGISTER_COUNT] {
    let others = [Register::RIP, Register::RFLAGS, Register::FS_BASE, Register::GS_BASE];
    let mut numbers = [0; REGISTER_COUNT];
    let mut index = 0;
    while index < WORDS {
        let of_others = index.wrapping_sub(GPR.len());
        let register = if index < GPR.len() { GPR[index] } else { others[of_others] };
        numbers[index] = register as c_int;
        index += 1;
    }
    // The numbers of one kind of register are consecutive.
    while index < WORDS + VECTORS {
        numbers[index] = Register::XMM0 as c_int + (index - WORDS) as c_int;
        index += 1;
    }
    while index < WORDS + VECTORS + 8 {
        numbers[index] = Register::FP0 as c_int + (index - WORDS - VECTORS) as c_int;
        index += 1;
    }
    numbers[index] = Register::MXCSR as c_int;
    numbers[index + 1] = Register::FPCW as c_int;
    numbers[index + 2] = Register::FPSW as c_int;
    numbers[index + 3] = Register::FPTAG as c_int;
    numbers
}

const _: () = assert!(
    Register::XMM15 as u32 - Register::XMM0 as u32 == 15
        && Register::FP7 as u32 - Register::FP0 as u32 == 7
);

/// An 80-bit register where the library writes ten bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Float {
    significand: u64,
    sign_exponent: u16,
}

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub(super) struct RegisterFile {
    /// General-purpose registers in encoding order, RIP, RFLAGS, FS base, GS base.
    words: [u64; WORDS],
    vectors: [[u64; 2]; VECTORS],
    /// By physical number.
    floats: [Float; 8],
    mxcsr: u32,
    x87_control: u16,
    x87_status: u16,
    x87_tag: u16,
}

impl RegisterFile {
    /// Where each register of [`REGISTER_NUMBERS`] lies.
    pub(super) fn places(&mut self) -> [*mut c_void; REGISTER_COUNT] {
        let mut places = [ptr::null_mut(); REGISTER_COUNT];
        let words = self.words.iter_mut().map(|word| ptr::from_mut(word).cast());
        let vectors = self.vectors.iter_mut().map(|vector| ptr::from_mut(vector).cast());
        let floats = self.floats.iter_mut().map(|float| ptr::from_mut(float).cast());
        let others = [
            ptr::from_mut(&mut self.mxcsr).cast(),
            ptr::from_mut(&mut self.x87_control).cast(),
            ptr::from_mut(&mut self.x87_status).cast(),
            ptr::from_mut(&mut self.x87_tag).cast(),
        ];
        let all = words.chain(vectors).chain(floats).chain(others);
        places.iter_mut().zip(all).for_each(|(place, register)| *place = register);
        places
    }

    pub(super) fn from_state(state: &State) -> Self {
        let mut file = Self {
            mxcsr: state.mxcsr,
            x87_control: state.x87.control,
            x87_status: state.x87.status,
            x87_tag: full_tag(state.x87.tag),
            ..Self::default()
        };
        file.words[..16].copy_from_slice(&state.gpr);
        file.words[16..].copy_from_slice(&[state.rip, state.rflags, state.fs_base, state.gs_base]);
        for (register, vector) in file.vectors.iter_mut().zip(&state.vector) {
            register.copy_from_slice(&vector[..2]);
        }
        for (index, F80 { significand, sign_exponent }) in state.x87.st.into_iter().enumerate() {
            file.floats[(state.x87.top() + index) % 8] = Float { significand, sign_exponent };
        }
        file
    }

    pub(super) fn rip(&self) -> u64 {
        self.words[16]
    }

    /// Takes over into `state` all that the library shows; the rest stays as it is.
    pub(super) fn into_state(self, state: &mut State) {
        state.gpr.copy_from_slice(&self.words[..16]);
        [state.rip, state.rflags, state.fs_base, state.gs_base] =
            [self.words[16], self.words[17] & !HIDDEN_FLAGS, self.words[18], self.words[19]];
        state.mxcsr = self.mxcsr;
        state.x87.control = self.x87_control;
        state.x87.status = self.x87_status;
        state.x87.tag = abridged_tag(self.x87_tag);
        for (vector, register) in state.vector.iter_mut().zip(&self.vectors) {
            vector[..2].copy_from_slice(register);
        }
        let top = state.x87.top();
        for (index, place) in state.x87.st.iter_mut().enumerate() {
            let Float { significand, sign_exponent } = self.floats[(top + index) % 8];
            *place = F80 { significand, sign_exponent };
        }
    }
}

/// Two bits a register: 3 if it is empty. What the others are tagged with is found from their
/// values.
fn full_tag(abridged: u8) -> u16 {
    (0..8).filter(|index| abridged >> index & 1 == 0).map(|index| 3 << (2 * index)).sum()
}

fn abridged_tag(full: u16) -> u8 {
    (0..8).filter(|index| full >> (2 * index) & 3 != 3).map(|index| 1 << index).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_round_trip_with_every_top_of_stack() {
        for top in 0..8_u16 {
            let mut state = State::default();
            state.x87.status = top << 11 | 0x4000;
            state.x87.tag = 0b1010_0110;
            for (index, register) in state.x87.st.iter_mut().enumerate() {
                *register = F80 { significand: index as u64 + 1, sign_exponent: index as u16 };
            }
            for (index, register) in state.gpr.iter_mut().enumerate() {
                *register = index as u64 * 3;
            }
            state.vector[15] = [1, 2, 3, 4, 5, 6, 7, 8];
            let file = RegisterFile::from_state(&state);
            assert_eq!(file.floats[usize::from(top)].significand, 1, "ST(0) is the top register");
            let mut back = state.clone();
            back.gpr = [0; 16];
            back.x87.st = [F80::default(); 8];
            back.vector[15][..2].fill(0);
            file.into_state(&mut back);
            assert_eq!(back, state);
        }
    }

    #[test]
    fn tags() {
        assert_eq!(full_tag(0), 0xffff);
        assert_eq!(full_tag(0x81), 0b00_11_11_11_11_11_11_00);
        assert_eq!(abridged_tag(0b01_11_11_11_11_11_11_10), 0x81);
    }
}

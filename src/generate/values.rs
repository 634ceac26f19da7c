//! Interesting values: [`Pool`] holds bytes of many types from which memory and vector registers
//! are cut, [`integer`] draws one number, [`fill_state`] a machine state.

use super::choices::{Choices, mix};
use crate::guest::{F80, Flag, RFLAGS_DEFAULT, State, X87};

const POOL_BYTES: usize = 128 << 10;

const INTEGERS: [u64; 16] = [
    0,
    1,
    u64::MAX,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x5555_5555_5555_5555,
];

/// Signalling and quiet NaNs, infinities, zeros, denormals, the ends of the range, small numbers.
const SINGLES: [u32; 20] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x4000_0000,
    0x3f00_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0xffc1_2345,
    0x0000_0001,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x4b00_0001,
    0x4f00_0000,
    0xcf00_0000,
    0x3fff_ffff,
    0x3eaa_aaab,
];

const DOUBLES: [u64; 20] = [
    0,
    1 << 63,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x4000_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0xfff8_1234_5678_9abc,
    1,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x4340_0000_0000_0001,
    0x43e0_0000_0000_0000,
    0xc1e0_0000_0000_0000,
    0x3fff_ffff_ffff_ffff,
    0x3fd5_5555_5555_5555,
];

const HALVES: [u16; 16] = [
    0, 0x8000, 0x3c00, 0xbc00, 0x4000, 0x7c00, 0xfc00, 0x7e00, 0x7c01, 1, 0x83ff, 0x0400, 0x7bff,
    0x3555, 0x6400, 0xfe12,
];

/// Bytes of many types, the same in every run.
#[derive(Debug)]
pub(super) struct Pool(Vec<u8>);

impl Pool {
    pub(super) fn new() -> Self {
        let mut bytes = Vec::with_capacity(POOL_BYTES);
        let mut seed = 0;
        while bytes.len() < POOL_BYTES {
            seed += 1;
            let random = mix(seed);
            // Runs of 256 bytes of one type.
            let word = match bytes.len() / 256 % 8 {
                0 => integer_from(random),
                1 | 2 => single(random) | single(random >> 32) << 32,
                3 | 4 => double(random),
                5 => (0..4).fold(0, |all, lane| all << 16 | half(random >> (lane * 16))),
                6 => random & 0x7f7f_7f7f_7f7f_7f7f,
                _ => random,
            };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        Self(bytes)
    }

    /// `length` bytes from a place of the pool.
    pub(super) fn bytes(&self, choices: &mut Choices, length: usize) -> Vec<u8> {
        let places = (POOL_BYTES - length) / 16;
        let start = choices.below(places) * 16;
        self.0[start..start + length].to_vec()
    }

    /// Fills 64-bit words from a place of the pool.
    pub(super) fn fill_words(&self, choices: &mut Choices, target: &mut [u64]) {
        let start = choices.below((POOL_BYTES - target.len() * 8) / 16) * 16;
        for (word, bytes) in target.iter_mut().zip(self.0[start..].chunks_exact(8)) {
            *word = bytes.try_into().map_or(0, u64::from_le_bytes);
        }
    }
}

fn single(random: u64) -> u64 {
    let index = (random >> 8 & 31) as usize;
    let near_one = 0x3f00_0000 | random as u32 & 0x80ff_ffff;
    u64::from(SINGLES.get(index).copied().unwrap_or(near_one))
}

fn double(random: u64) -> u64 {
    let index = (random >> 8 & 31) as usize;
    let near_one = 0x3fe0_0000_0000_0000 | random & 0x801f_ffff_ffff_ffff;
    DOUBLES.get(index).copied().unwrap_or(near_one)
}

fn half(random: u64) -> u64 {
    u64::from(HALVES[(random & 15) as usize])
}

fn integer_from(random: u64) -> u64 {
    match random & 7 {
        0..=3 => INTEGERS[(random >> 8 & 15) as usize],
        4 => 1 << (random >> 8 & 63),
        5 => random >> 8 & 0xff,
        6 => INTEGERS[(random >> 8 & 15) as usize].wrapping_add(random >> 16 & 3).wrapping_sub(1),
        _ => mix(random),
    }
}

/// An interesting number.
pub(super) fn integer(choices: &mut Choices) -> u64 {
    match choices.byte() {
        0..=95 => choices.pick(&INTEGERS),
        96..=127 => 1 << choices.below(64),
        128..=175 => u64::from(choices.byte()),
        176..=207 => u64::from(choices.double_word()),
        _ => choices.quad_word(),
    }
}

/// Flags as a program may set them: the arithmetic ones, now and then the others.
pub(super) fn flags(choices: &mut Choices) -> u64 {
    let arithmetic = [Flag::CF, Flag::PF, Flag::AF, Flag::ZF, Flag::SF, Flag::OF];
    let bits = choices.byte();
    let mut value = RFLAGS_DEFAULT;
    for (index, flag) in arithmetic.into_iter().enumerate() {
        value |= u64::from(bits >> index & 1) * flag.mask();
    }
    for (flag, share) in
        [(Flag::DF, 5000), (Flag::ID, 5000), (Flag::NT, 500), (Flag::AC, 600), (Flag::TF, 300)]
    {
        value |= u64::from(choices.rarely(share)) * flag.mask();
    }
    value
}

/// A control word for the x87 unit, nearly always with all exceptions masked.
pub(super) fn x87_control(choices: &mut Choices) -> u16 {
    let precision_and_rounding = choices.pick(&[0x300, 0, 0x200, 0x700, 0xb00, 0xf00, 0x600]);
    let masks = if choices.chance(6) { u16::from(choices.byte() & 0x3f) } else { 0x3f };
    // Bit 8 and 9 are precision control; bit 12 is free but has no effect.
    precision_and_rounding | masks | 0x40
}

/// A value for MXCSR, nearly always with all exceptions masked.
pub(super) fn mxcsr(choices: &mut Choices) -> u32 {
    let masks = if choices.chance(6) { u32::from(choices.byte() & 0x3f) << 7 } else { 0x1f80 };
    let rounding = u32::from(choices.byte() & 3) << 13;
    let (flush, denormals) = (choices.chance(40), choices.chance(40));
    let sticky = if choices.chance(40) { u32::from(choices.byte() & 0x3f) } else { 0 };
    // A sticky flag that is not masked does nothing until the next exception of its kind.
    masks | rounding | u32::from(flush) << 15 | u32::from(denormals) << 6 | sticky
}

/// Draws everything of the state that has nothing to do with the layout. With `wide`, also the
/// registers that only AVX-512 reaches.
pub(super) fn fill_state(choices: &mut Choices, pool: &Pool, wide: bool, state: &mut State) {
    for value in &mut state.gpr {
        *value = integer(choices);
    }
    state.rflags = flags(choices);
    state.mxcsr = mxcsr(choices);
    fill_x87(choices, pool, &mut state.x87);
    let count = if wide { state.vector.len() } else { 16 };
    for pair in state.vector[..count].chunks_exact_mut(4) {
        if wide {
            pool.fill_words(choices, pair.as_flattened_mut());
            continue;
        }
        let mut words = [0; 8];
        pool.fill_words(choices, &mut words);
        for (vector, low) in pair.iter_mut().zip(words.chunks_exact(2)) {
            vector[..2].copy_from_slice(low);
        }
    }
    if wide {
        for mask in &mut state.opmask {
            *mask = match choices.byte() {
                0..=63 => u64::MAX,
                64..=95 => 0,
                _ => choices.quad_word(),
            };
        }
    }
}

fn fill_x87(choices: &mut Choices, pool: &Pool, x87: &mut X87) {
    x87.control = x87_control(choices);
    let top = u16::from(choices.byte() & 7);
    let depth = choices.below(6);
    x87.status = top << 11;
    let mut words = [0; 6];
    pool.fill_words(choices, &mut words);
    for (index, word) in words.into_iter().enumerate().take(depth) {
        x87.tag |= 1 << ((usize::from(top) + index) % 8);
        x87.st[index] = extended(word, choices.byte());
    }
}

/// A double as an extended value; now and then one that no double gives.
fn extended(word: u64, kind: u8) -> F80 {
    match kind {
        0..=15 => F80 { significand: word, sign_exponent: word as u16 },
        16..=31 => F80 { significand: word | 1 << 63, sign_exponent: 0x7fff },
        32..=39 => F80 { significand: word, sign_exponent: 0 },
        _ => {
            let exponent = (word >> 52 & 0x7ff) as u16;
            let sign = (word >> 48) as u16 & 0x8000;
            let fraction = word << 11 & !(1 << 63);
            let (bit, biased) = match exponent {
                0 => (0, 0),
                0x7ff => (1 << 63, 0x7fff),
                _ => (1 << 63, exponent + 16383 - 1023),
            };
            F80 { significand: fraction | bit, sign_exponent: sign | biased }
        }
    }
}

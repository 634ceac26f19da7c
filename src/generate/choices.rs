//! Where choices come from: [`choices`] makes the bytes of one case from a seed, [`Choices`] reads
//! choices from any bytes. Bytes that have run out read as zero, and zero is always the simplest
//! choice, so that a generator never fails and a shorter input is a simpler case.

use arbitrary::Unstructured;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Bytes that one case may use up; a few cases read zeros at their end.
const CHOICE_BYTES: usize = 2048;

/// Fills `buffer` with the choices of case number `case_index` of `seed`: the same bytes for the
/// same two numbers, whoever asks.
pub fn choices(seed: u64, case_index: u64, buffer: &mut Vec<u8>) {
    let mut state = [0; 32];
    let words = [mix(seed), mix(!case_index), mix(seed.rotate_left(32) ^ case_index), 1];
    for (place, word) in state.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let mut generator = Xoshiro256PlusPlus::from_seed(state);
    // Neighbouring seeds give neighbouring states: a few steps part their streams.
    for _ in 0..8 {
        generator.next_u64();
    }
    buffer.resize(CHOICE_BYTES, 0);
    generator.fill_bytes(buffer);
}

/// The output function of SplitMix64.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Infallible choices from the bytes of an [`Unstructured`].
#[derive(Clone, Debug)]
pub(super) struct Choices<'bytes> {
    rest: &'bytes [u8],
}

impl<'bytes> Choices<'bytes> {
    /// Takes all bytes that `source` has left: to ask it for each choice costs more than the choice.
    pub(super) fn new(source: &mut Unstructured<'bytes>) -> Self {
        Self { rest: source.bytes(source.len()).unwrap_or_default() }
    }

    /// The choices that `bytes` are.
    pub(super) fn of(bytes: &'bytes [u8]) -> Self {
        Self { rest: bytes }
    }

    #[inline]
    fn take<const SIZE: usize>(&mut self) -> [u8; SIZE] {
        if let Some((bytes, rest)) = self.rest.split_first_chunk() {
            self.rest = rest;
            return *bytes;
        }
        let mut bytes = [0; SIZE];
        bytes[..self.rest.len()].copy_from_slice(self.rest);
        self.rest = &[];
        bytes
    }

    #[inline]
    pub(super) fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub(super) fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(super) fn double_word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(super) fn quad_word(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// A number in `0..count`, zero when the bytes have run out. `count` is 1 to 65536.
    pub(super) fn below(&mut self, count: usize) -> usize {
        debug_assert!((1..=1 << 16).contains(&count));
        match count {
            1 => 0,
            2..=64 => (usize::from(self.byte()) * count) >> 8,
            _ => (usize::from(self.word()) * count) >> 16,
        }
    }

    /// True in `numerator` of 256 cases, false when the bytes have run out.
    pub(super) fn chance(&mut self, numerator: u8) -> bool {
        u16::from(self.byte()) + u16::from(numerator) > 255
    }

    /// True in `numerator` of 65536 cases, false when the bytes have run out.
    pub(super) fn rarely(&mut self, numerator: u16) -> bool {
        u32::from(self.word()) + u32::from(numerator) > 65535
    }

    /// One of `values`, the first when the bytes have run out.
    pub(super) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_and_repeat() {
        let stream = |seed, index| {
            let mut buffer = Vec::new();
            choices(seed, index, &mut buffer);
            buffer
        };
        assert_eq!(stream(1, 2), stream(1, 2));
        assert_ne!(stream(1, 2), stream(2, 1));
        assert_ne!(stream(1, 2), stream(1, 3));
        assert_ne!(stream(0, 0), stream(0, 1));
    }

    #[test]
    fn exhausted_choices_are_simple() {
        let mut source = Unstructured::new(&[]);
        let mut choices = Choices::new(&mut source);
        assert!(!choices.chance(255) && !choices.rarely(u16::MAX));
        assert_eq!(choices.pick(&[7, 8, 9]), 7);
        assert_eq!((choices.below(1000), choices.quad_word()), (0, 0));
    }

    #[test]
    fn chances_are_as_stated() {
        let mut buffer = Vec::new();
        choices(3, 4, &mut buffer);
        let mut source = Unstructured::new(&buffer);
        let mut choices = Choices::new(&mut source);
        let hits = (0..2048).filter(|_| choices.chance(64)).count();
        assert!((430..600).contains(&hits), "{hits} of 2048");
    }
}

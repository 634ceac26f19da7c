//! The XSAVE image, standard form: where each part of a [`State`] lies in it on this host.
//!
//! Intel SDM volume 1, chapter 13 "Managing State Using the XSAVE Feature Set": the first 512 bytes
//! are an FXSAVE64 image, then comes the header with XSTATE_BV, then each component at the offset
//! that CPUID leaf 0DH tells. A component whose bit in XSTATE_BV is clear is in its initial state.

use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

use super::{F80, PKRU_DEFAULT, State, Vector, X87};

/// Where XMM0–XMM15 lie.
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
const LEGACY_SIZE: usize = 576;

const X87_BIT: u64 = 1 << 0;
const SSE_BIT: u64 = 1 << 1;
const AVX: u32 = 2;
const OPMASK: u32 = 5;
const ZMM_HIGH: u32 = 6;
const ZMM_16_31: u32 = 7;
const PKRU: u32 = 9;

/// The layout on this host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Xstate {
    avx: Option<usize>,
    opmask: Option<usize>,
    zmm_high: Option<usize>,
    zmm_16_31: Option<usize>,
    pkru: Option<usize>,
}

impl Xstate {
    /// The bit of PKRU in masks of components.
    pub(crate) const PKRU_COMPONENT: u64 = 1 << PKRU;

    /// Asks the processor; only what the operating system has enabled in XCR0 counts.
    pub(crate) fn of_this_host() -> Self {
        // Under a hypervisor each CPUID takes microseconds.
        static LAYOUT: LazyLock<Xstate> = LazyLock::new(Xstate::detect);
        *LAYOUT
    }

    fn detect() -> Self {
        let enabled = __cpuid_count(0xd, 0);
        let enabled = u64::from(enabled.edx) << 32 | u64::from(enabled.eax);
        let offset = |component: u32| {
            let bit = enabled >> component & 1 == 1;
            bit.then(|| __cpuid_count(0xd, component).ebx as usize)
        };
        Self {
            avx: offset(AVX),
            opmask: offset(OPMASK),
            zmm_high: offset(ZMM_HIGH),
            zmm_16_31: offset(ZMM_16_31),
            pkru: offset(PKRU),
        }
    }

    /// How many vector registers there are.
    pub(crate) fn vector_registers(&self) -> usize {
        if self.zmm_16_31.is_some() { 32 } else { 16 }
    }

    /// Bytes of each.
    pub(crate) fn vector_bytes(&self) -> usize {
        match (self.zmm_high, self.avx) {
            (Some(_), _) => 64,
            (None, Some(_)) => 32,
            (None, None) => 16,
        }
    }

    /// Whether there are opmask registers.
    pub(crate) fn has_opmask(&self) -> bool {
        self.opmask.is_some()
    }

    /// Whether there are protection keys.
    pub(crate) fn has_pkru(&self) -> bool {
        self.pkru.is_some()
    }

    fn optional(&self) -> [(u32, Option<usize>, usize); 5] {
        [
            (AVX, self.avx, 256),
            (OPMASK, self.opmask, 64),
            (ZMM_HIGH, self.zmm_high, 512),
            (ZMM_16_31, self.zmm_16_31, 1024),
            (PKRU, self.pkru, 4),
        ]
    }

    /// The components that there are for guests, PKRU included: XCR0 without what nobody saves here.
    pub(crate) fn enabled(&self) -> u64 {
        self.components()
    }

    /// Where PKRU lies in an area.
    pub(crate) fn pkru_offset(&self) -> Option<usize> {
        self.pkru
    }

    /// Where the upper halves of YMM registers lie in an area, if there are ZMM registers.
    pub(crate) fn avx_beside_zmm(&self) -> Option<usize> {
        self.avx.filter(|_| self.zmm_high.is_some())
    }

    /// The components that XRSTOR is to load, as its mask.
    pub(crate) fn components(&self) -> u64 {
        let optional = self.optional().into_iter().filter(|(_, offset, _)| offset.is_some());
        X87_BIT | SSE_BIT | optional.fold(0, |mask, (component, ..)| mask | 1 << component)
    }

    /// Bytes of an image with those components.
    pub(crate) fn size(&self) -> usize {
        let ends = self.optional().into_iter().filter_map(|(_, offset, size)| Some(offset? + size));
        ends.fold(LEGACY_SIZE, usize::max).next_multiple_of(8)
    }

    /// Fills `image`, at least [`Self::size`] bytes, with the vector and x87 parts of `state`.
    pub(crate) fn store(&self, state: &State, image: &mut [u8]) {
        let mut present = X87_BIT | SSE_BIT;
        store_legacy(state, image);
        let mut note = |component: u32| present |= 1 << component;
        let (low, high) = state.vector.split_at(16);
        // Where ZMM_Hi256 is in use AMD's processors have AVX in use too, and XSAVEOPT, which sees nothing modified,
        // says so without storing it: what is left out here would be what the image held before.
        if let Some(offset) = self.avx
            && low.iter().any(|vector| vector[2..] != [0; 6])
        {
            note(AVX);
            store_parts::<16, 2>(image, offset, low, 2);
        }
        if let Some(offset) = self.zmm_high
            && low.iter().any(|vector| vector[4..] != [0; 4])
        {
            note(ZMM_HIGH);
            store_parts::<32, 4>(image, offset, low, 4);
        }
        if let Some(offset) = self.zmm_16_31
            && high.iter().any(|vector| *vector != [0; 8])
        {
            note(ZMM_16_31);
            store_parts::<64, 8>(image, offset, high, 0);
        }
        if let Some(offset) = self.opmask {
            note(OPMASK);
            store_parts::<64, 8>(image, offset, &[state.opmask], 0);
        }
        if let Some(offset) = self.pkru {
            note(PKRU);
            image[offset..offset + 4].copy_from_slice(&state.pkru.to_le_bytes());
        }
        image[XSTATE_BV..LEGACY_SIZE].fill(0);
        image[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&present.to_le_bytes());
    }

    /// Reads the vector and x87 parts of `state` out of `image`.
    pub(crate) fn load(&self, image: &[u8], state: &mut State) {
        let present = word(image, XSTATE_BV);
        let offset_if = |component: u32, offset: Option<usize>| {
            offset.filter(|_| present >> component & 1 == 1)
        };
        load_legacy(image, present, state);
        let (low, high) = state.vector.split_at_mut(16);
        load_parts::<16, 2>(image, offset_if(AVX, self.avx), low, 2);
        load_parts::<32, 4>(image, offset_if(ZMM_HIGH, self.zmm_high), low, 4);
        load_parts::<64, 8>(image, offset_if(ZMM_16_31, self.zmm_16_31), high, 0);
        state.opmask = offset_if(OPMASK, self.opmask)
            .map_or([0; 8], |offset| std::array::from_fn(|index| word(image, offset + index * 8)));
        state.pkru = match (self.pkru, offset_if(PKRU, self.pkru)) {
            (_, Some(offset)) => word(image, offset) as u32,
            (Some(_), None) => 0,
            (None, None) => PKRU_DEFAULT,
        };
    }
}

fn store_legacy(state: &State, image: &mut [u8]) {
    let x87 = &state.x87;
    image[..160].fill(0);
    image[0..2].copy_from_slice(&x87.control.to_le_bytes());
    image[2..4].copy_from_slice(&x87.status.to_le_bytes());
    image[4] = x87.tag;
    image[6..8].copy_from_slice(&x87.opcode.to_le_bytes());
    image[8..16].copy_from_slice(&x87.instruction_pointer.to_le_bytes());
    image[16..24].copy_from_slice(&x87.data_pointer.to_le_bytes());
    image[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    for (index, register) in x87.st.iter().enumerate() {
        let place = 32 + index * 16;
        image[place..place + 8].copy_from_slice(&register.significand.to_le_bytes());
        image[place + 8..place + 10].copy_from_slice(&register.sign_exponent.to_le_bytes());
    }
    store_parts::<16, 2>(image, XMM, &state.vector[..16], 0);
}

fn load_legacy(image: &[u8], present: u64, state: &mut State) {
    let half = |offset: usize| word(image, offset) as u16;
    state.x87 = X87::default();
    if present & X87_BIT != 0 {
        state.x87 = X87 {
            control: half(0),
            status: half(2),
            tag: image[4],
            opcode: half(6),
            instruction_pointer: word(image, 8),
            data_pointer: word(image, 16),
            st: std::array::from_fn(|index| F80 {
                significand: word(image, 32 + index * 16),
                sign_exponent: half(40 + index * 16),
            }),
        };
    }
    state.mxcsr = word(image, 24) as u32;
    let offset = (present & SSE_BIT != 0).then_some(XMM);
    load_parts::<16, 2>(image, offset, &mut state.vector[..16], 0);
}

/// Stores `WORDS` words of each vector, from word `first` on: `BYTES` bytes, one behind the other from
/// `offset`.
fn store_parts<const BYTES: usize, const WORDS: usize>(
    image: &mut [u8],
    offset: usize,
    vectors: &[Vector],
    first: usize,
) {
    const { assert!(BYTES == 8 * WORDS) };
    let places = image[offset..offset + BYTES * vectors.len()].as_chunks_mut::<BYTES>().0;
    for (place, vector) in places.iter_mut().zip(vectors) {
        let words: &[u64; WORDS] = vector[first..].first_chunk().expect("inside a vector");
        for (bytes, word) in place.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
    }
}

/// Loads what [`store_parts`] stores; zeros where it lies nowhere.
fn load_parts<const BYTES: usize, const WORDS: usize>(
    image: &[u8],
    offset: Option<usize>,
    vectors: &mut [Vector],
    first: usize,
) {
    const { assert!(BYTES == 8 * WORDS) };
    let Some(offset) = offset else {
        return vectors.iter_mut().for_each(|vector| vector[first..first + WORDS].fill(0));
    };
    let places = image[offset..offset + BYTES * vectors.len()].as_chunks::<BYTES>().0;
    for (place, vector) in places.iter().zip(vectors) {
        let words: &mut [u64; WORDS] = vector[first..].first_chunk_mut().expect("inside a vector");
        for (bytes, word) in place.as_chunks().0.iter().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
    }
}

fn word(image: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(image[offset..offset + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_round_trip() {
        let xstate = Xstate::of_this_host();
        let mut state = State::default();
        for (index, vector) in state.vector[..xstate.vector_registers()].iter_mut().enumerate() {
            for (lane, word) in vector[..xstate.vector_bytes() / 8].iter_mut().enumerate() {
                *word = (index * 8 + lane) as u64 * 0x0101_0101_0101_0101;
            }
        }
        if xstate.has_opmask() {
            state.opmask = [1, 2, 3, 4, 5, 6, 7, u64::MAX];
        }
        state.x87 = X87 {
            control: 0x27f,
            status: 0x3801,
            tag: 0x81,
            opcode: 0x7ff,
            instruction_pointer: 0x1234_5678_9abc,
            data_pointer: 0xffff_8000_0000_0000,
            st: std::array::from_fn(|index| F80 {
                significand: index as u64 + 1,
                sign_exponent: 0x3fff,
            }),
        };
        let mut image = vec![0xff; xstate.size()];
        xstate.store(&state, &mut image);
        let mut loaded = State::default();
        xstate.load(&image, &mut loaded);
        assert_eq!(loaded, state);
        xstate.store(&State::default(), &mut image);
        xstate.load(&image, &mut loaded);
        assert_eq!(loaded, State::default());
    }
}

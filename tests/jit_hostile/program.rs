//! Hostile guest code, as bytes: every addressing form on every kind of opcode, in no meaningful
//! order, with prefixes in orders that no assembler writes.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Mnemonic};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::Rng;

/// Choices.
pub(crate) struct Dice(pub(crate) Xoshiro256PlusPlus);

impl Dice {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn byte(&mut self) -> u8 {
        self.0.next_u64() as u8
    }
}

/// Opcodes that go to memory in a way of their own, or change control: map, opcode, fixed ModRM
/// bits 5–3 if the opcode needs some.
const SPECIAL: &[(&[u8], Option<u8>)] = &[
    (&[0xa4], None),
    (&[0xa5], None),
    (&[0xa6], None),
    (&[0xa7], None),
    (&[0xaa], None),
    (&[0xab], None),
    (&[0xac], None),
    (&[0xad], None),
    (&[0xae], None),
    (&[0xaf], None),
    (&[0xd7], None),
    (&[0xa0], None),
    (&[0xa1], None),
    (&[0xa2], None),
    (&[0xa3], None),
    (&[0x50], None),
    (&[0x54], None),
    (&[0x58], None),
    (&[0x5c], None),
    (&[0x5f], None),
    (&[0x68], None),
    (&[0x6a], None),
    (&[0x8f], Some(0)),
    (&[0xff], Some(6)),
    (&[0x9c], None),
    (&[0x9d], None),
    (&[0xc8], None),
    (&[0xc9], None),
    (&[0xc3], None),
    (&[0xc2], None),
    (&[0xff], Some(2)),
    (&[0xff], Some(4)),
    (&[0xe8], None),
    (&[0xe9], None),
    (&[0xeb], None),
    (&[0x74], None),
    (&[0x0f, 0x85], None),
    (&[0xe0], None),
    (&[0xe1], None),
    (&[0xe2], None),
    (&[0xe3], None),
    (&[0x0f, 0xa3], None),
    (&[0x0f, 0xab], None),
    (&[0x0f, 0xb3], None),
    (&[0x0f, 0xbb], None),
    (&[0x0f, 0xba], Some(5)),
    (&[0x0f, 0xb0], None),
    (&[0x0f, 0xb1], None),
    (&[0x0f, 0xc0], None),
    (&[0x0f, 0xc1], None),
    (&[0x0f, 0xc7], Some(1)),
    (&[0x0f, 0xf7], None),
    (&[0x66, 0x0f, 0xf7], None),
    (&[0x0f, 0xae], Some(0)),
    (&[0x0f, 0xae], Some(1)),
    (&[0x0f, 0xae], Some(2)),
    (&[0x0f, 0xae], Some(3)),
    (&[0x0f, 0xae], Some(4)),
    (&[0x0f, 0xae], Some(5)),
    (&[0x0f, 0xae], Some(7)),
    (&[0x0f, 0xc7], Some(4)),
    (&[0xf3, 0x0f, 0xae], Some(0)),
    (&[0xf3, 0x0f, 0xae], Some(2)),
    (&[0xf3, 0x0f, 0xae], Some(3)),
    (&[0x0f, 0x0d], None),
    (&[0x0f, 0x18], None),
    (&[0x66, 0x0f, 0x38, 0xf8], None),
    (&[0x0f, 0x38, 0xf9], None),
    (&[0xd9], Some(4)),
    (&[0xd9], Some(6)),
    (&[0xdd], Some(4)),
    (&[0xdd], Some(6)),
    (&[0xdb], Some(5)),
    (&[0xdb], Some(7)),
    (&[0x0f, 0x01], None),
    (&[0x8e], None),
    (&[0x8c], None),
    (&[0xf6], Some(4)),
    (&[0xf7], Some(4)),
    (&[0xf7], Some(6)),
    (&[0x99], None),
    (&[0x0f, 0x31], None),
    (&[0x0f, 0xa2], None),
    (&[0x8d], None),
    (&[0xc5, 0xf9, 0xf7], None),
    (&[0xc4, 0xe2, 0x69, 0x8c], None),
    (&[0xc4, 0xe2, 0x69, 0x8e], None),
];

/// Gathers and scatters: prefix bytes up to the opcode.
const MANY: &[&[u8]] = &[
    &[0xc4, 0xe2, 0x69, 0x90],
    &[0xc4, 0xe2, 0xe9, 0x90],
    &[0xc4, 0xe2, 0x6d, 0x91],
    &[0xc4, 0xe2, 0xed, 0x92],
    &[0xc4, 0xc2, 0x69, 0x93],
    &[0x62, 0xf2, 0x7d, 0x49, 0x90],
    &[0x62, 0xf2, 0xfd, 0x49, 0x91],
    &[0x62, 0xf2, 0x7d, 0x49, 0xa0],
    &[0x62, 0xf2, 0xfd, 0x49, 0xa1],
    &[0x62, 0xf2, 0x7d, 0x49, 0xa2],
    &[0x62, 0xf2, 0xfd, 0x29, 0xa3],
];

const PREFIXES: [u8; 11] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x64, 0x65, 0x2e, 0x3e, 0x36, 0x26];

/// Code of about `length` instructions.
pub(crate) fn write(dice: &mut Dice, length: usize) -> Vec<u8> {
    let mut code = Vec::new();
    let bases = [dice.below(16) as u8, dice.below(16) as u8, dice.below(16) as u8];
    while code.len() < length * 5 {
        match dice.below(6) {
            0 => code.extend(chain(dice)),
            _ => code.extend(instruction(dice, bases)),
        }
    }
    if dice.one_in(3) {
        // A loop of its own, if nothing above ends the block: by DEC RCX and JNZ.
        code.extend([0x48, 0xff, 0xc9, 0x0f, 0x85]);
        code.extend((-(code.len() as i32) - 4).to_le_bytes());
    }
    if dice.one_in(4) {
        // Back to somewhere, the middle of an instruction included.
        let target = dice.below(code.len()) as i32;
        code.push(0xe9);
        code.extend((target - code.len() as i32 - 4).to_le_bytes());
    }
    code.push(0xf4);
    code
}

/// An access by a register that instructions change without naming it, such a change, and the
/// access once more.
fn chain(dice: &mut Dice) -> Vec<u8> {
    const CHANGES: [&[u8]; 14] = [
        &[0x48, 0x0f, 0xb1, 0xc0],                   // cmpxchg rax,rax
        &[0x48, 0x0f, 0xb1, 0x0b],                   // cmpxchg [rbx],rcx
        &[0x48, 0x0f, 0xb1, 0x0e],                   // cmpxchg [rsi],rcx
        &[0x48, 0x0f, 0xc7, 0x0f],                   // cmpxchg16b [rdi]
        &[0x48, 0xf7, 0xe2],                         // mul rdx
        &[0x48, 0xf7, 0xe3],                         // mul rbx
        &[0x48, 0xf7, 0xe8],                         // imul rax
        &[0x48, 0x99],                               // cqo
        &[0x48, 0xad],                               // lodsq
        &[0x48, 0xa5],                               // movsq
        &[0x58],                                     // pop rax
        &[0x48, 0x87, 0x03],                         // xchg [rbx],rax
        &[0x48, 0x81, 0xc0, 0xff, 0xff, 0xff, 0x3f], // add rax,3FFFFFFF
        &[0xc9],                                     // leave
    ];
    let register = dice.of(&[0, 0, 0, 2, 6, 7]);
    let access = [0x48, 0x8b, 0x48 | register, 0x08];
    let mut bytes = access.to_vec();
    for _ in 0..dice.of(&[1, 1, 2, 3]) {
        bytes.extend(dice.of(&CHANGES));
    }
    bytes.extend(access);
    bytes
}

fn instruction(dice: &mut Dice, bases: [u8; 3]) -> Vec<u8> {
    loop {
        let bytes = candidate(dice, bases);
        let decoded = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        let ends = decoded.flow_control() != FlowControl::Next
            || decoded.is_privileged()
            || matches!(decoded.mnemonic(), Mnemonic::Hlt | Mnemonic::Syscall | Mnemonic::Cpuid);
        let special = decoded.code() == Code::INVALID || ends;
        if !special || dice.one_in(12) {
            return bytes[..decoded.len().max(1)].to_vec();
        }
    }
}

fn candidate(dice: &mut Dice, bases: [u8; 3]) -> Vec<u8> {
    let base = dice.of(&bases);
    let mut bytes = Vec::new();
    let rex = 0x40 | dice.byte() & 0xe | base >> 3;
    for _ in 0..dice.of(&[0, 0, 0, 0, 0, 1, 1, 2, 4]) {
        bytes.push(dice.of(&PREFIXES));
        if dice.one_in(16) {
            bytes.push(rex);
        }
    }
    match dice.below(16) {
        0..4 => {
            let (opcode, fixed) = dice.of(SPECIAL);
            // A mandatory prefix stands before REX.
            let prefix = usize::from(matches!(opcode[0], 0x66 | 0xf3));
            let vector = matches!(opcode[0], 0xc4 | 0xc5);
            bytes.extend(&opcode[..prefix]);
            if !vector && !dice.one_in(3) {
                bytes.push(rex);
            }
            bytes.extend(&opcode[prefix..]);
            operand(dice, &mut bytes, base, fixed);
        }
        4 => {
            bytes.extend(dice.of(MANY));
            // A vector index needs a SIB byte.
            let modrm = dice.byte() & 0x38 | 4 | dice.of(&[0, 0x40, 0x80]);
            bytes.extend([modrm, dice.byte() & 0xf8 | base & 7]);
            displacement(dice, &mut bytes);
        }
        5 | 6 => vector(dice, &mut bytes, base),
        _ => {
            if !dice.one_in(3) {
                bytes.push(rex);
            }
            match dice.below(8) {
                0..4 => bytes.push(dice.byte()),
                4..6 => bytes.extend([0x0f, dice.byte()]),
                6 => bytes.extend([0x0f, 0x38, dice.byte()]),
                _ => bytes.extend([0x0f, 0x3a, dice.byte()]),
            }
            operand(dice, &mut bytes, base, None);
        }
    }
    bytes
}

/// A VEX or EVEX opcode with an operand.
fn vector(dice: &mut Dice, bytes: &mut Vec<u8>, base: u8) {
    let map = dice.of(&[1, 2, 2, 3]);
    let rxb = dice.byte() & 0xc0 | if base < 8 { 0x20 } else { 0 };
    let unused = if dice.one_in(2) { 0x78 } else { dice.byte() & 0x78 };
    if dice.one_in(2) {
        bytes.extend([0xc4, rxb | map, dice.byte() & 0x87 | unused, dice.byte()]);
    } else {
        let extended = dice.byte() & 0x10;
        bytes.extend([0x62, rxb | extended | map, dice.byte() & 0x83 | unused | 4]);
        bytes.extend([dice.byte() & 0xf7 | 8, dice.byte()]);
    }
    operand(dice, bytes, base, None);
}

/// ModRM, SIB, displacement and some bytes more, which an immediate may be made of.
fn operand(dice: &mut Dice, bytes: &mut Vec<u8>, base: u8, fixed: Option<u8>) {
    let register = fixed.unwrap_or(dice.byte() & 7) << 3;
    match dice.below(8) {
        // A base, or SIB where the base is RSP or R12.
        0..4 => bytes.push(dice.of(&[0, 0x40, 0x80]) | register | base & 7),
        4 | 5 => {
            bytes.extend([dice.of(&[0, 0x40, 0x80]) | register | 4, dice.byte() & 0xf8 | base & 7])
        }
        // Relative to RIP, and a constant.
        6 if dice.one_in(2) => bytes.push(register | 5),
        6 => bytes.extend([register | 4, 0x25]),
        _ => bytes.push(0xc0 | register | base & 7),
    }
    displacement(dice, bytes);
}

fn displacement(dice: &mut Dice, bytes: &mut Vec<u8>) {
    if bytes.last().is_some_and(|last| *last == 0x24) {
        bytes.extend([0x24]);
    }
    let word: u32 = match dice.below(6) {
        0 => 0x7fff_ffff,
        1 => 0x8000_0000,
        2 => 0u32.wrapping_sub(1 + dice.below(4096) as u32),
        3 => dice.below(1 << 16) as u32,
        4 => 0u32.wrapping_sub(dice.below(1 << 17) as u32),
        _ => dice.word() as u32,
    };
    bytes.extend(word.to_le_bytes());
    bytes.extend(dice.word().to_le_bytes());
}

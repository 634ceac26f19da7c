//! Encodings in order, not at random: every opcode of every map with the prefixes, and the bits of VEX and EVEX, that
//! decide what it is or whether it is anything. The translating engine has exactly the instructions that silicon
//! has, bits that the processor ignores and exceptions in their order included.
//!
//! Some of them are tried, others of each opcode. `TREGION_ENCODINGS=61` tries one in 61, for two minutes.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::sync::{Mutex, PoisonError};

use itertools::iproduct;
use tregion::case::{Case, text};
use tregion::engine::Engine;
use tregion::engine::jit::Jit;
use tregion::engine::silicon::Silicon;
use tregion::generate::Generator;
use tregion::guest::{GuestAddress, HostFeatures, Vendor};
use tregion::oracle::compare::compare;
use tregion::oracle::judge::{EngineVerdict, judge_one};

/// What follows an encoding: bytes of immediates and the next instructions.
const BEHIND: [u8; 8] = [0x90; 8];
/// [rdi], rdi, and [rdi+xmm4], which is [rdi] to who takes no vector for an index; rdi points to data.
const OPERANDS: [&[u8]; 3] = [&[0x07], &[0xc7], &[0x04, 0x27]];

#[test]
fn legacy() {
    let prefixes: [&[u8]; 7] = [&[], &[0x66], &[0xf3], &[0xf2], &[0x66, 0xf2], &[0xf0], &[0x67]];
    let rex: [&[u8]; 4] = [&[], &[0x48], &[0x44], &[0x41]];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let bytes = iproduct!(maps, 0..=255, prefixes, rex, 0..8, OPERANDS);
    agree(
        31,
        bytes.map(|(map, opcode, prefix, rex, reg, operand)| {
            [prefix, rex, map, &[opcode], &with_reg(operand, reg)].concat()
        }),
    );
}

/// All of ModRM from C0 on, which is opcode too.
#[test]
fn legacy_of_registers() {
    let prefixes: [&[u8]; 4] = [&[], &[0x66], &[0xf3], &[0xf2]];
    let opcodes: [&[u8]; 14] = [
        &[0x0f, 0x01],
        &[0x0f, 0xae],
        &[0x0f, 0xc7],
        &[0x0f, 0x1e],
        &[0x0f, 0x71],
        &[0x0f, 0x73],
        &[0xd8],
        &[0xd9],
        &[0xda],
        &[0xdb],
        &[0xdc],
        &[0xdd],
        &[0xde],
        &[0xdf],
    ];
    let bytes = iproduct!(opcodes, prefixes, 0xc0..=0xff);
    agree(1, bytes.map(|(opcode, prefix, operand)| [prefix, opcode, &[operand]].concat()));
}

#[test]
fn vex() {
    // P0 but for the map, with each bit of it that names a register.
    let registers = [0xe0, 0x60, 0xa0, 0xc0];
    // W and L, vvvv unused and used, and its highest bit.
    let rest = iproduct!([0, 0x80], [0, 4], [0x78, 0x70, 0x38], 0..4);
    let rest = rest.map(|(w, l, v, pp)| w | l | v | pp);
    let long = iproduct!(1..=3, 0..=255, registers, rest.clone(), 0..8, OPERANDS);
    agree(
        31,
        long.map(|(map, opcode, registers, rest, reg, operand)| {
            [&[0xc4, registers | map, rest, opcode][..], &with_reg(operand, reg)].concat()
        }),
    );
    let short = iproduct!(0..=255, rest.filter(|rest| rest & 0x80 == 0), [0, 0x80], 0..8, OPERANDS);
    agree(
        31,
        short.map(|(opcode, rest, r, reg, operand)| {
            [&[0xc5, rest | r, opcode][..], &with_reg(operand, reg)].concat()
        }),
    );
}

#[test]
fn evex() {
    // P0 but for the map: each bit that names a register, and the reserved one.
    let first = [0xf0, 0x70, 0xb0, 0xd0, 0xe0, 0xf8];
    // P1: W, vvvv unused and used, pp.
    let second = iproduct!([0x04, 0x84], [0x78, 0x70, 0x38], 0..4).map(|(w, v, pp)| w | v | pp);
    // P2: z, L'L, b, V', aaa.
    let third = iproduct!([0, 0x80], 0..4, [0, 0x10], [8, 0], [0, 1]);
    let third = third.map(|(z, l, b, v, a)| z | l << 5 | b | v | a);
    let bytes = iproduct!([1, 2, 3, 5, 6], 0..=255, first, second, third, [0, 3], OPERANDS);
    agree(
        2053,
        bytes.map(|(map, opcode, first, second, third, reg, operand)| {
            [&[0x62, first | map, second, third, opcode][..], &with_reg(operand, reg)].concat()
        }),
    );
}

/// With so many prefixes that some are longer than 15 bytes, which the processor says before anything else, of what is
/// no instruction too. How long that is, nobody has measured on Intel's.
#[test]
fn too_long() {
    if Vendor::of_this_host() != Vendor::Amd {
        return;
    }
    let operands: [&[u8]; 5] =
        [&[0x07], &[0xc7], &[0x44, 0x27, 0x01], &[0x05, 0, 0, 0, 0], &[0x87, 0, 0, 0, 0]];
    let bytes = iproduct!(HEADS, 0..=255, operands, 0..=14);
    agree(
        31,
        bytes.map(|(head, opcode, operand, prefixes)| {
            [&[0x36].repeat(prefixes), head, &[opcode], operand].concat()
        }),
    );
}

/// At the end of the last page that can be executed, so that some are cut off: a page fault, if what is no instruction
/// is that long.
#[test]
fn cut_off() {
    if Vendor::of_this_host() != Vendor::Amd {
        return;
    }
    let operands: [&[u8]; 2] = [&[0xc7, 0, 0, 0, 0, 0, 0, 0], &[0x44, 0x27, 0x01, 0, 0, 0, 0, 0]];
    let bytes = iproduct!(HEADS, 0..=255, operands, 0..=7_usize);
    let bytes = bytes.map(|(head, opcode, operand, most)| {
        [head, &[opcode], &operand[..most.min(operand.len())]].concat()
    });
    agree_at(7, bytes, |generator, encoding| {
        let case = generator.literal(&[encoding, &BEHIND].concat());
        // Others are refused.
        let kept = case.initial_bytes(GuestAddress(case.state.rip))?.starts_with(encoding);
        kept.then(|| moved_to_the_end(case, encoding))
    });
}

/// The case with its program at the end of its code.
fn moved_to_the_end(mut case: Case, program: &[u8]) -> Case {
    let code = case.mappings.iter().find(|mapping| mapping.permissions.execute()).unwrap();
    let contents = &mut case.objects[code.object.0].contents;
    contents.fill(0x90);
    let start = contents.len() - program.len();
    contents[start..].copy_from_slice(program);
    case.state.rip = code.range.start().0 + start as u64;
    case
}

/// What opcodes come behind.
const HEADS: [&[u8]; 18] = [
    &[],
    &[0x48],
    &[0x0f],
    &[0x0f, 0x38],
    &[0x0f, 0x3a],
    &[0xc5, 0x78],
    &[0xc4, 0xe1, 0x78],
    &[0xc4, 0xe2, 0x79],
    &[0xc4, 0xe3, 0x79],
    &[0x62, 0xf1, 0x7c, 0x48],
    &[0x62, 0xf3, 0x7d, 0x48],
    &[0x8f, 0xe8, 0x78],
    &[0x8f, 0x49, 0x78],
    &[0x8f, 0xea, 0x78],
    &[0x8f, 0xe3, 0x78],
    &[0x48, 0x8f, 0xe9, 0x78],
    &[0x66, 0x8f, 0xea, 0x78],
    &[0x48, 0xc4, 0xe1, 0x78],
];

fn with_reg(operand: &[u8], reg: u8) -> Vec<u8> {
    [&[operand[0] | reg << 3][..], &operand[1..]].concat()
}

/// Tries one encoding in `stride`, which should not divide how many an opcode has.
fn agree(stride: usize, encodings: impl Iterator<Item = Vec<u8>>) {
    agree_at(stride, encodings, |generator, encoding| {
        Some(generator.literal(&[encoding, &BEHIND].concat()))
    });
}

/// The same of encodings in cases that `place` makes, if it does. One call at a time, since there is room for one big
/// window.
fn agree_at(
    stride: usize,
    encodings: impl Iterator<Item = Vec<u8>>,
    place: impl Fn(&Generator, &[u8]) -> Option<Case>,
) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = std::env::var("TREGION_ENCODINGS").ok();
    let stride = wanted.map_or(stride, |wanted| wanted.parse().unwrap());
    let generator = Generator::new(&HostFeatures::detect());
    let mut silicon = Silicon::new().unwrap();
    let mut jit = Jit::new().unwrap();
    let visible = silicon.capabilities().visible.common(jit.capabilities().visible);
    let (mut tried, mut unsupported, mut different) = (0, 0, Vec::new());
    for encoding in encodings.step_by(stride) {
        let Some(case) = place(&generator, &encoding) else { continue };
        let (Ok(right), Ok(other)) = (silicon.run(&case), jit.run(&case)) else {
            unsupported += 1;
            continue;
        };
        tried += 1;
        if !compare(&case, &right, &other, visible).is_empty()
            && let Some(key) = unexplained(&mut silicon, &mut jit, &case)
        {
            different.push(format!("{encoding:02x?}: {key}"));
        }
    }
    println!("{tried} encodings, {unsupported} not supported");
    assert!(unsupported * 20 < tried);
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

/// What differs, judged again as a campaign does.
fn unexplained(silicon: &mut Silicon, jit: &mut Jit, case: &Case) -> Option<String> {
    let EngineVerdict::Differs { findings, .. } = judge_one(silicon, jit, case).unwrap() else {
        return None;
    };
    let news = findings.into_iter().find(|finding| finding.accepted.is_none())?;
    Some(format!("{}\n{}", news.key, text::print(&news.divergence.case)))
}

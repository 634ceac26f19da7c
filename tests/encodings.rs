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
use tregion::guest::HostFeatures;
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

fn with_reg(operand: &[u8], reg: u8) -> Vec<u8> {
    [&[operand[0] | reg << 3][..], &operand[1..]].concat()
}

/// Tries one encoding in `stride`, which should not divide how many an opcode has. One call at a time, since there is
/// room for one big window.
fn agree(stride: usize, encodings: impl Iterator<Item = Vec<u8>>) {
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
        let case = generator.literal(&[&encoding, &BEHIND[..]].concat());
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

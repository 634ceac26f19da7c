//! The instructions in question, and the records of operands that they are tried with.

use iced_x86::{Code, Instruction, Register};

use crate::emit::{Place, Trial, memory_operand, sized};

/// How an 8-bit instruction takes its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Register or memory, and a register; the second code for the other way round, if any.
    Binary(Code, Option<Code>),
    Unary(Code),
    /// AL or AX by an operand.
    Product(Code),
    /// Like `Binary`, and AL counts.
    Exchange(Code),
}

pub(crate) const BYTE_OPERATIONS: [Shape; 20] = {
    use Code as C;
    use Shape::{Binary, Exchange, Product, Unary};
    [
        Binary(C::Add_rm8_r8, Some(C::Add_r8_rm8)),
        Binary(C::Or_rm8_r8, Some(C::Or_r8_rm8)),
        Binary(C::Adc_rm8_r8, Some(C::Adc_r8_rm8)),
        Binary(C::Sbb_rm8_r8, Some(C::Sbb_r8_rm8)),
        Binary(C::And_rm8_r8, Some(C::And_r8_rm8)),
        Binary(C::Sub_rm8_r8, Some(C::Sub_r8_rm8)),
        Binary(C::Xor_rm8_r8, Some(C::Xor_r8_rm8)),
        Binary(C::Cmp_rm8_r8, Some(C::Cmp_r8_rm8)),
        Binary(C::Test_rm8_r8, None),
        Binary(C::Xadd_rm8_r8, None),
        Exchange(C::Cmpxchg_rm8_r8),
        Unary(C::Inc_rm8),
        Unary(C::Dec_rm8),
        Unary(C::Neg_rm8),
        Unary(C::Not_rm8),
        Product(C::Mul_rm8),
        Product(C::Imul_rm8),
        Product(C::Div_rm8),
        Product(C::Idiv_rm8),
        Binary(C::Xchg_rm8_r8, None),
    ]
};

const M: Place = Place::Memory(Register::R12);
const M15: Place = Place::Memory(Register::R15);
const MSP: Place = Place::Memory(Register::RSP);

const fn r(register: Register) -> Place {
    Place::Register(register)
}

/// Pairs of operands. AH goes with no register that takes REX.
const PAIRS: [(Place, Place); 17] = {
    use Register as R;
    [
        (r(R::AL), r(R::BL)),
        (r(R::AH), r(R::BH)),
        (r(R::BL), r(R::AH)),
        (r(R::AL), r(R::AL)),
        (r(R::R14L), r(R::R15L)),
        (r(R::R15L), r(R::R14L)),
        (r(R::R14L), r(R::R14L)),
        (r(R::SPL), r(R::R14L)),
        (r(R::R15L), r(R::SPL)),
        (r(R::SPL), r(R::SPL)),
        (M, r(R::BL)),
        (MSP, r(R::AH)),
        (M15, r(R::R14L)),
        (M, r(R::SPL)),
        (r(R::R15L), M15),
        (r(R::AH), MSP),
        (r(R::SPL), M),
    ]
};

/// An 8-bit record: both operands, AL or AH, and the number of the flags.
const BYTE_RECORD: usize = 4;

/// All trials of an 8-bit operation, one for each pair of places that it can take.
pub(crate) fn byte_trials(shape: Shape) -> Vec<Trial> {
    match shape {
        Shape::Binary(code, reversed) => pairs(code, reversed, &[]),
        Shape::Exchange(code) => pairs(code, None, &[(2, Register::AL)]),
        Shape::Unary(code) => singles(|place| single(code, place, 0, &[])),
        Shape::Product(code) => {
            let divides = matches!(code, Code::Div_rm8 | Code::Idiv_rm8);
            let loads = [(0, Register::AL), (2, Register::AH)];
            let loads = if divides { &loads[..] } else { &loads[..1] };
            // Whatever is in AX is the other operand.
            singles(|place| {
                (place != r(Register::AH)).then(|| single(code, place, 1, loads)).flatten()
            })
        }
    }
}

fn pairs(code: Code, reversed: Option<Code>, others: &[(u8, Register)]) -> Vec<Trial> {
    let trial = |(first, second): (Place, Place)| {
        let instruction = match (first, second) {
            (Place::Register(first), Place::Register(second)) => {
                Instruction::with2(code, first, second)
            }
            (Place::Memory(base), Place::Register(second)) => {
                Instruction::with2(code, memory_operand(base), second)
            }
            (Place::Register(first), Place::Memory(base)) => {
                Instruction::with2(reversed?, first, memory_operand(base))
            }
            (Place::Memory(_), Place::Memory(_)) => return None,
        };
        Some(Trial {
            instruction: instruction.unwrap(),
            operands: vec![(first, 0, 1), (second, 1, 1)],
            others: others.to_vec(),
            flags_at: 3,
            record_bytes: BYTE_RECORD,
        })
    };
    PAIRS.into_iter().filter_map(trial).collect()
}

fn singles(trial: impl Fn(Place) -> Option<Trial>) -> Vec<Trial> {
    use Register as R;
    let registers = [R::BL, R::AH, R::R14L, R::R15L, R::SPL].map(r);
    registers.into_iter().chain([M, M15, MSP]).filter_map(trial).collect()
}

fn single(code: Code, place: Place, offset: u8, others: &[(u8, Register)]) -> Option<Trial> {
    let instruction = match place {
        Place::Register(register) => Instruction::with1(code, register),
        Place::Memory(base) => Instruction::with1(code, memory_operand(base)),
    };
    Some(Trial {
        instruction: instruction.unwrap(),
        operands: vec![(place, offset, 1)],
        others: others.to_vec(),
        flags_at: 3,
        record_bytes: BYTE_RECORD,
    })
}

/// All pairs of operands with all flags; for divisions those that have a result.
pub(crate) fn byte_records(shape: Shape) -> Vec<u8> {
    let mut records = Vec::new();
    for pair in 0..1 << 16 {
        let (first, second) = (pair as u8, (pair >> 8) as u8);
        for flags in 0..4 {
            match shape {
                Shape::Product(Code::Div_rm8) if second == 0 => continue,
                Shape::Product(Code::Div_rm8) => {
                    let high = (u32::from(second) * u32::from(flags) / 4) as u8;
                    records.extend([first, second, high, flags]);
                }
                Shape::Product(Code::Idiv_rm8) => {
                    let Some([low, high]) = dividend(first as i8, second as i8, flags) else {
                        continue;
                    };
                    records.extend([low, second, high, flags]);
                }
                _ => {
                    // Half of all comparisons come out equal.
                    let third = if (first ^ second) & 1 == 0 { first } else { second };
                    records.extend([first, second, third, flags]);
                }
            }
        }
    }
    records
}

/// What gives this quotient, with a remainder of some size.
fn dividend(quotient: i8, divisor: i8, size: u8) -> Option<[u8; 2]> {
    let (quotient, divisor) = (i32::from(quotient), i32::from(divisor));
    let product = quotient * divisor;
    let remainder = divisor.abs() * i32::from(size) / 4;
    let sum = if product < 0 { product - remainder } else { product + remainder };
    let fits = divisor != 0 && i8::try_from(sum / divisor).is_ok();
    fits.then(|| (sum as i16).to_le_bytes())
}

/// Shifts and rotates by CL, by a constant and by one, for 8, 16, 32 and 64 bits.
pub(crate) type Shift = ([Code; 4], [Code; 4], [Code; 4]);

#[rustfmt::skip]
pub(crate) const SHIFTS: [Shift; 8] = {
    use Code as C;
    [
        (
            [C::Rol_rm8_CL, C::Rol_rm16_CL, C::Rol_rm32_CL, C::Rol_rm64_CL],
            [C::Rol_rm8_imm8, C::Rol_rm16_imm8, C::Rol_rm32_imm8, C::Rol_rm64_imm8],
            [C::Rol_rm8_1, C::Rol_rm16_1, C::Rol_rm32_1, C::Rol_rm64_1],
        ),
        (
            [C::Ror_rm8_CL, C::Ror_rm16_CL, C::Ror_rm32_CL, C::Ror_rm64_CL],
            [C::Ror_rm8_imm8, C::Ror_rm16_imm8, C::Ror_rm32_imm8, C::Ror_rm64_imm8],
            [C::Ror_rm8_1, C::Ror_rm16_1, C::Ror_rm32_1, C::Ror_rm64_1],
        ),
        (
            [C::Rcl_rm8_CL, C::Rcl_rm16_CL, C::Rcl_rm32_CL, C::Rcl_rm64_CL],
            [C::Rcl_rm8_imm8, C::Rcl_rm16_imm8, C::Rcl_rm32_imm8, C::Rcl_rm64_imm8],
            [C::Rcl_rm8_1, C::Rcl_rm16_1, C::Rcl_rm32_1, C::Rcl_rm64_1],
        ),
        (
            [C::Rcr_rm8_CL, C::Rcr_rm16_CL, C::Rcr_rm32_CL, C::Rcr_rm64_CL],
            [C::Rcr_rm8_imm8, C::Rcr_rm16_imm8, C::Rcr_rm32_imm8, C::Rcr_rm64_imm8],
            [C::Rcr_rm8_1, C::Rcr_rm16_1, C::Rcr_rm32_1, C::Rcr_rm64_1],
        ),
        (
            [C::Shl_rm8_CL, C::Shl_rm16_CL, C::Shl_rm32_CL, C::Shl_rm64_CL],
            [C::Shl_rm8_imm8, C::Shl_rm16_imm8, C::Shl_rm32_imm8, C::Shl_rm64_imm8],
            [C::Shl_rm8_1, C::Shl_rm16_1, C::Shl_rm32_1, C::Shl_rm64_1],
        ),
        (
            [C::Shr_rm8_CL, C::Shr_rm16_CL, C::Shr_rm32_CL, C::Shr_rm64_CL],
            [C::Shr_rm8_imm8, C::Shr_rm16_imm8, C::Shr_rm32_imm8, C::Shr_rm64_imm8],
            [C::Shr_rm8_1, C::Shr_rm16_1, C::Shr_rm32_1, C::Shr_rm64_1],
        ),
        (
            [C::Sal_rm8_CL, C::Sal_rm16_CL, C::Sal_rm32_CL, C::Sal_rm64_CL],
            [C::Sal_rm8_imm8, C::Sal_rm16_imm8, C::Sal_rm32_imm8, C::Sal_rm64_imm8],
            [C::Sal_rm8_1, C::Sal_rm16_1, C::Sal_rm32_1, C::Sal_rm64_1],
        ),
        (
            [C::Sar_rm8_CL, C::Sar_rm16_CL, C::Sar_rm32_CL, C::Sar_rm64_CL],
            [C::Sar_rm8_imm8, C::Sar_rm16_imm8, C::Sar_rm32_imm8, C::Sar_rm64_imm8],
            [C::Sar_rm8_1, C::Sar_rm16_1, C::Sar_rm32_1, C::Sar_rm64_1],
        ),
    ]
};

/// SHLD and SHRD by CL and by a constant, for 16, 32 and 64 bits.
pub(crate) const DOUBLE_SHIFTS: [([Code; 3], [Code; 3]); 2] = {
    use Code as C;
    [
        (
            [C::Shld_rm16_r16_CL, C::Shld_rm32_r32_CL, C::Shld_rm64_r64_CL],
            [C::Shld_rm16_r16_imm8, C::Shld_rm32_r32_imm8, C::Shld_rm64_r64_imm8],
        ),
        (
            [C::Shrd_rm16_r16_CL, C::Shrd_rm32_r32_CL, C::Shrd_rm64_r64_CL],
            [C::Shrd_rm16_r16_imm8, C::Shrd_rm32_r32_imm8, C::Shrd_rm64_r64_imm8],
        ),
    ]
};

/// A record of a shift: two operands of eight bytes, the count, the number of the flags.
const SHIFT_RECORD: usize = 24;

const VALUES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x8000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x8000_0000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xa5a5_5a5a_c3c3_3c3c,
    u64::MAX,
];

/// All counts that CL can hold, or none, with all values and flags.
pub(crate) fn shift_records(counts: usize) -> Vec<u8> {
    let mut records = Vec::new();
    for count in 0..counts {
        for (index, value) in VALUES.into_iter().enumerate() {
            for flags in 0..4_u8 {
                let other = VALUES[(index + 5) % VALUES.len()] ^ 0x1234;
                records.extend(value.to_le_bytes());
                records.extend(other.to_le_bytes());
                records.extend([count as u8, flags, 0, 0, 0, 0, 0, 0]);
            }
        }
    }
    records
}

fn shift_trial(instruction: Instruction, operands: Vec<(Place, u8, usize)>) -> Trial {
    Trial {
        instruction,
        operands,
        others: vec![(16, Register::CL)],
        flags_at: 17,
        record_bytes: SHIFT_RECORD,
    }
}

fn shift_places(bytes: usize) -> Vec<Place> {
    use Register as R;
    let registers = [R::RAX, R::R14, R::R15, R::RSP].map(|register| r(sized(register, bytes)));
    let high = (bytes == 1).then_some(r(R::AH));
    registers.into_iter().chain(high).chain([M, M15, MSP]).collect()
}

/// A shift of one place by CL, and by one if there is a code for it.
pub(crate) fn shifts(code: Code, by_one: Code, bytes: usize) -> Vec<Trial> {
    let mut trials = Vec::new();
    for place in shift_places(bytes) {
        let by_cl = match place {
            Place::Register(register) => Instruction::with2(code, register, Register::CL),
            Place::Memory(base) => Instruction::with2(code, memory_operand(base), Register::CL),
        };
        let one = match place {
            Place::Register(register) => Instruction::with2(by_one, register, 1),
            Place::Memory(base) => Instruction::with2(by_one, memory_operand(base), 1),
        };
        trials.push(shift_trial(by_cl.unwrap(), vec![(place, 0, bytes)]));
        trials.push(shift_trial(one.unwrap(), vec![(place, 0, bytes)]));
    }
    trials
}

/// A shift by every constant.
pub(crate) fn constant_shifts(code: Code, bytes: usize, place: usize) -> Vec<Trial> {
    let place = shift_places(bytes)[place % shift_places(bytes).len()];
    let trial = |count: u32| {
        let instruction = match place {
            Place::Register(register) => Instruction::with2(code, register, count),
            Place::Memory(base) => Instruction::with2(code, memory_operand(base), count),
        };
        shift_trial(instruction.unwrap(), vec![(place, 0, bytes)])
    };
    (0..256).map(trial).collect()
}

fn double_pairs(bytes: usize) -> Vec<(Place, Register)> {
    use Register as R;
    let of = |register| sized(register, bytes);
    let registers =
        [(R::RAX, R::RBX), (R::R14, R::R15), (R::R15, R::RSP), (R::RSP, R::R14), (R::R14, R::R14)];
    let registers = registers.into_iter().map(|(first, second)| (r(of(first)), of(second)));
    let memory = [(M, R::R15), (M15, R::RSP), (MSP, R::R14)];
    registers.chain(memory.into_iter().map(|(place, second)| (place, of(second)))).collect()
}

/// SHLD or SHRD by CL.
pub(crate) fn double_shifts(code: Code, bytes: usize) -> Vec<Trial> {
    let trial = |(place, second): (Place, Register)| {
        let instruction = match place {
            Place::Register(first) => Instruction::with3(code, first, second, Register::CL),
            Place::Memory(base) => {
                Instruction::with3(code, memory_operand(base), second, Register::CL)
            }
        };
        shift_trial(instruction.unwrap(), vec![(place, 0, bytes), (r(second), 8, bytes)])
    };
    double_pairs(bytes).into_iter().map(trial).collect()
}

/// SHLD or SHRD by every constant.
pub(crate) fn constant_double_shifts(code: Code, bytes: usize, pair: usize) -> Vec<Trial> {
    let (place, second) = double_pairs(bytes)[pair % double_pairs(bytes).len()];
    let trial = |count: u32| {
        let instruction = match place {
            Place::Register(first) => Instruction::with3(code, first, second, count),
            Place::Memory(base) => Instruction::with3(code, memory_operand(base), second, count),
        };
        shift_trial(instruction.unwrap(), vec![(place, 0, bytes), (r(second), 8, bytes)])
    };
    (0..256).map(trial).collect()
}

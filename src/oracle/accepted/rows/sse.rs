//! SSE arithmetic.

use iced_x86::Mnemonic as M;

use super::super::Accepted;
use super::super::Pattern::{Mnemonics, Where};
use super::super::conditions::{
    both_complete, class, differs_within, flushes, is_vector, only_which_nan, raised, state,
};
use super::super::instructions::{is_sse_arithmetic, overlaps_itself};
use super::{FOUND, unicorn};
use crate::case::ExceptionVector;
use crate::oracle::compare::ComponentClass as C;

const SERIES: &str = "QEMU commit 418b0f93d12a, \"target/i386: set SSE FTZ in correct \
                      floating-point state\", and the series around it (2020)";

/// The six status bits of MXCSR.
const MXCSR_STATUS: u128 = 0x3f;
/// The six masks of MXCSR.
const MXCSR_MASKS: u32 = 0x1f80;

pub(super) const ROWS: &[Accepted] = &[
    unicorn("sse-exceptions", Where(is_sse_arithmetic))
        .stops(|stops| raised(stops.0, ExceptionVector::XM))
        .when(|divergence, _| state(divergence).mxcsr & MXCSR_MASKS != MXCSR_MASKS)
        .because("unmasked SSE exceptions do not raise #XM", "QEMU issue 215"),
    unicorn("mxcsr-status", Where(is_sse_arithmetic))
        .shows(|difference| {
            class(difference) == C::Mxcsr && differs_within(difference, MXCSR_STATUS)
        })
        .because("exceptions of SSE arithmetic are not noted in MXCSR", "QEMU issue 215"),
    unicorn("dot-product", Mnemonics(&[M::Dpps]))
        .stops(both_complete)
        .shows(|difference| matches!(class(difference), C::Xmm | C::Mxcsr))
        .because(
            "DPPS adds its four products one after the other; silicon adds two pairs and then their sums, and \
             rounds and notes exceptions in that order",
            "Intel SDM volume 2A, DPPS: sums of pairs, each rounded, then of the two",
        ),
    unicorn("dot-product-of-zeros", Mnemonics(&[M::Dppd, M::Vdppd]))
        .stops(both_complete)
        .shows(|difference| {
            let signs = 1 << 63 | 1 << 127;
            class(difference) == C::Xmm && differs_within(difference, signs)
        })
        .because(
            "DPPD adds its products to a zero, so that two negative zeros have a positive one for a sum",
            "Intel SDM volume 2A, DPPD: the sum of both products",
        ),
    unicorn(
        "horizontal-overlap",
        Where(|code| {
            const HORIZONTAL: [M; 10] = [
                M::Phaddw,
                M::Phaddd,
                M::Phaddsw,
                M::Phsubw,
                M::Phsubd,
                M::Phsubsw,
                M::Haddps,
                M::Haddpd,
                M::Hsubps,
                M::Hsubpd,
            ];
            HORIZONTAL.contains(&code.mnemonic()) && overlaps_itself(code)
        }),
    )
    .stops(both_complete)
    .shows(|difference| matches!(class(difference), C::Xmm | C::X87Register))
    .because(
        "with one register as both operands the result is read where it was already written",
        FOUND,
    ),
    unicorn("reciprocals", Mnemonics(&[M::Rcpps, M::Rcpss, M::Rsqrtps, M::Rsqrtss]))
        .stops(both_complete)
        .shows(is_vector)
        .because(
            "approximations are computed exactly; both are within the error that the manual allows",
            "Intel SDM volume 2B, RCPPS: |relative error| ≤ 1.5 · 2^-12",
        ),
    unicorn("nan-operand", Where(is_sse_arithmetic))
        .stops(both_complete)
        .shows(only_which_nan)
        .because(
            "of two NaN operands another one is passed on, or with another sign",
            "QEMU issue 1375; Intel SDM volume 1, table 4-7",
        ),
    unicorn("flush-to-zero", Where(is_sse_arithmetic))
        .stops(both_complete)
        .shows(|difference| is_vector(difference) || matches!(class(difference), C::X87Register))
        .when(|divergence, _| flushes(divergence))
        .because("MXCSR.FTZ and DAZ set by a guest have no effect, or not the right one", SERIES),
];

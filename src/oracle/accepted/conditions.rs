//! Conditions of rows: over how runs stopped, over one difference, and over the state before it.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind};

use super::super::compare::{Component, ComponentClass, Difference, Value};
use super::super::localise::{Culprit, Divergence};
use super::super::undefined::defined_flags;
use super::Stops;
use super::accesses::{Access, general_register, is_canonical, some_access};
use crate::case::{ExceptionVector, Stop};
use crate::guest::{
    F80, Flag, GuestAddress, State, is_repeated_string, locks_register_bit, unchecked_decoder,
};

// ---- how runs stopped ----------------------------------------------------------------------

pub(super) fn raised(stop: Stop, wanted: ExceptionVector) -> bool {
    matches!(stop, Stop::Exception { vector, .. } if vector == wanted)
}

/// Neither run ended with an exception, but for the trap behind an instruction.
pub(super) fn both_complete(stops: Stops) -> bool {
    let trap = ExceptionVector::DB;
    let faulted = |stop| matches!(stop, Stop::Exception { vector, .. } if vector != trap);
    !faulted(stops.0) && !faulted(stops.1)
}

pub(super) fn both_page_faults(stops: Stops) -> bool {
    raised(stops.0, ExceptionVector::PF) && raised(stops.1, ExceptionVector::PF)
}

/// Silicon executes what the other side calls an invalid opcode.
pub(super) fn only_right_is_invalid(stops: Stops) -> bool {
    !raised(stops.0, ExceptionVector::UD) && raised(stops.1, ExceptionVector::UD)
}

/// Silicon refuses what the other side executes.
pub(super) fn only_left_is_invalid(stops: Stops) -> bool {
    raised(stops.0, ExceptionVector::UD) && !raised(stops.1, ExceptionVector::UD)
}

/// Silicon says of an undefined instruction that it is too long, where the other side executes it.
pub(super) fn only_left_is_too_long(stops: Stops) -> bool {
    let refused = |stop| raised(stop, ExceptionVector::GP) || raised(stop, ExceptionVector::UD);
    raised(stops.0, ExceptionVector::GP) && !refused(stops.1)
}

/// Both say that the opcode is invalid.
pub(super) fn both_invalid(stops: Stops) -> bool {
    raised(stops.0, ExceptionVector::UD) && raised(stops.1, ExceptionVector::UD)
}

/// Silicon raises #GP, the other side does not.
pub(super) fn only_left_is_protection(stops: Stops) -> bool {
    raised(stops.0, ExceptionVector::GP) && !raised(stops.1, ExceptionVector::GP)
}

/// A page fault that silicon does not raise.
pub(super) fn only_right_page_faults(stops: Stops) -> bool {
    !raised(stops.0, ExceptionVector::PF) && raised(stops.1, ExceptionVector::PF)
}

/// A page fault that only silicon raises.
pub(super) fn only_left_page_faults(stops: Stops) -> bool {
    raised(stops.0, ExceptionVector::PF) && !raised(stops.1, ExceptionVector::PF)
}

// ---- one difference ------------------------------------------------------------------------

pub(super) fn class(difference: &Difference) -> ComponentClass {
    difference.component.class()
}

pub(super) fn is_flag(difference: &Difference) -> bool {
    matches!(difference.component, Component::Flag(_))
}

/// The last instruction of a sequence that gave the flag that differs a value.
pub(super) fn maker_of_flag<'a>(
    divergence: &'a Divergence,
    difference: &Difference,
) -> Option<&'a Instruction> {
    let Component::Flag(flag) = difference.component else { return None };
    divergence.executed.iter().rfind(|code| defined_flags(code) & flag.mask() != 0)
}

pub(super) fn is_the_flag(difference: &Difference, flag: Flag) -> bool {
    difference.component == Component::Flag(flag)
}

pub(super) fn is_register(difference: &Difference) -> bool {
    class(difference) == ComponentClass::Gpr
}

pub(super) fn is_register_or_flag(difference: &Difference) -> bool {
    is_register(difference) || is_flag(difference)
}

pub(super) fn is_vector(difference: &Difference) -> bool {
    use ComponentClass as C;
    matches!(class(difference), C::Xmm | C::YmmHigh)
}

/// Both sides as numbers.
pub(super) fn numbers(difference: &Difference) -> Option<(u128, u128)> {
    match (difference.left, difference.right) {
        (Value::Bits(left), Value::Bits(right)) => Some((left, right)),
        _ => None,
    }
}

/// The bits that differ; none where a side has no number.
pub(super) fn unlike_bits(difference: &Difference) -> u128 {
    numbers(difference).map_or(0, |(left, right)| left ^ right)
}

/// Whether only bits of `mask` differ, in two numbers.
pub(super) fn differs_within(difference: &Difference, mask: u128) -> bool {
    let unlike = unlike_bits(difference);
    unlike != 0 && unlike & !mask == 0
}

/// A general-purpose register whose upper half alone differs.
pub(super) fn is_upper_half(difference: &Difference) -> bool {
    is_register(difference) && differs_within(difference, 0xffff_ffff_0000_0000)
}

// ---- the state before it -------------------------------------------------------------------

pub(super) fn state(divergence: &Divergence) -> &State {
    &divergence.case.state
}

/// The culprit, if it differs by itself.
pub(super) fn culprit(divergence: &Divergence) -> Option<&Instruction> {
    match &divergence.culprit {
        Culprit::Instruction(instruction) => Some(instruction),
        Culprit::Sequence(_) | Culprit::Unknown => None,
    }
}

pub(super) fn always(_: &Divergence, _: &Difference) -> bool {
    true
}

/// Whether the culprit's encoding has this legacy prefix. A REX prefix with others behind it is none, and ignored.
pub(super) fn has_prefix(divergence: &Divergence, wanted: u8) -> bool {
    const PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    code_of(divergence)
        .iter()
        .take_while(|byte| PREFIXES.contains(byte) || (0x40..=0x4f).contains(*byte))
        .any(|&byte| byte == wanted)
}

/// Whether BT, BTS, BTR or BTC of a register, with LOCK, comes behind the culprit before control goes elsewhere.
pub(super) fn leads_to_locked_bit(divergence: &Divergence) -> bool {
    let decoder = unchecked_decoder(code_of(divergence));
    let mut straight = decoder.into_iter().take_while(|instruction| {
        !instruction.is_invalid() && instruction.flow_control() == FlowControl::Next
    });
    straight.any(|instruction| locks_register_bit(&instruction))
}

/// Whether the culprit's encoding has this byte behind its legacy prefixes but 66, F0, F2 and F3.
pub(super) fn starts_with(divergence: &Divergence, wanted: u8) -> bool {
    const PREFIXES: [u8; 7] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67];
    code_of(divergence).iter().find(|byte| !PREFIXES.contains(byte)) == Some(&wanted)
}

/// The bytes that the culprit's encoding begins.
fn code_of(divergence: &Divergence) -> &[u8] {
    let rip = GuestAddress(state(divergence).rip);
    divergence.case.initial_bytes(rip).unwrap_or_default()
}

/// The value of a source operand, where it is a general-purpose register.
pub(super) fn register_operand(divergence: &Divergence, index: u32) -> Option<u64> {
    let instruction = culprit(divergence)?;
    let is_register = instruction.op_kind(index) == OpKind::Register;
    is_register.then(|| general_register(instruction.op_register(index), state(divergence)))?
}

/// The difference in `component`, if there is one.
pub(super) fn unlike(divergence: &Divergence, component: Component) -> Option<&Difference> {
    divergence.differences.iter().find(|difference| difference.component == component)
}

/// Whether the culprit accesses, or the other side reports or jumps to, a non-canonical address.
pub(super) fn meets_non_canonical(divergence: &Divergence) -> bool {
    let reported = match divergence.stops.1 {
        Stop::Exception { address: Some(address), .. } => !is_canonical(address),
        _ => false,
    };
    let jumped = unlike(divergence, Component::Rip)
        .and_then(numbers)
        .is_some_and(|(_, rip)| !is_canonical(rip as u64));
    reported || jumped || some_access(divergence, |access| !access.is_canonical())
}

pub(super) fn accesses_misaligned(divergence: &Divergence) -> bool {
    some_access(divergence, |access| access.size >= 16 && access.address % 16 != 0)
}

/// Whether MXCSR says FTZ or DAZ.
pub(super) fn flushes(divergence: &Divergence) -> bool {
    const FTZ: u32 = 1 << 15;
    const DAZ: u32 = 1 << 6;
    state(divergence).mxcsr & (FTZ | DAZ) != 0
}

/// Whether lanes of `width` bits that differ hold a NaN on both sides.
fn only_nans_differ(left: u128, right: u128, width: u32) -> bool {
    let mask = if width == 32 { 0xffff_ffff } else { u128::from(u64::MAX) };
    (0..128 / width).all(|lane| {
        let (left, right) = (left >> (lane * width) & mask, right >> (lane * width) & mask);
        left == right || is_nan(left as u64, width) && is_nan(right as u64, width)
    })
}

fn is_nan(bits: u64, width: u32) -> bool {
    if width == 32 { f32::from_bits(bits as u32).is_nan() } else { f64::from_bits(bits).is_nan() }
}

/// A vector register that differs in nothing but which NaN it holds.
pub(super) fn only_which_nan(difference: &Difference) -> bool {
    is_vector(difference)
        && numbers(difference).is_some_and(|(left, right)| {
            only_nans_differ(left, right, 32) || only_nans_differ(left, right, 64)
        })
}

// ---- x87 -----------------------------------------------------------------------------------

/// IE, DE, ZE, OE, UE, PE, the summary of them, busy, and C1, which tells of rounding and of
/// stacks.
pub(super) const X87_EXCEPTIONS: u128 = 0x82bf;
/// SF.
pub(super) const X87_STACK_FLAG: u128 = 0x40;
/// C0, C2 and C3.
pub(super) const X87_CONDITIONS: u128 = 0x4500;
/// TOP.
pub(super) const X87_TOP: u128 = 0x3800;

pub(super) fn is_x87_register(difference: &Difference) -> bool {
    class(difference) == ComponentClass::X87Register
}

pub(super) fn is_x87_status(difference: &Difference, bits: u128) -> bool {
    class(difference) == ComponentClass::X87Status && differs_within(difference, bits)
}

/// Whether ST(i) is marked empty before the culprit.
pub(super) fn is_empty(state: &State, index: usize) -> bool {
    let physical = (state.x87.top() + index) & 7;
    state.x87.tag & 1 << physical == 0
}

/// Whether the culprit reads a register of the stack that is empty, or pushes onto a full one.
pub(super) fn meets_stack_fault(divergence: &Divergence) -> bool {
    let Some(instruction) = culprit(divergence) else { return false };
    let state = state(divergence);
    let mut factory = InstructionInfoFactory::new();
    let underflows = factory.info(instruction).used_registers().iter().any(|used| {
        let reads = !matches!(used.access(), OpAccess::Write | OpAccess::None);
        used.register().is_st() && reads && is_empty(state, used.register().number())
    });
    let pops = instruction.fpu_stack_increment_info().increment() > 0;
    let pushes = instruction.fpu_stack_increment_info().increment() < 0;
    underflows || pops && is_empty(state, 0) || pushes && !is_empty(state, 7)
}

/// Whether an exception of the x87 unit is pending after it on silicon, so that it was not masked.
pub(super) fn leaves_pending(divergence: &Divergence) -> bool {
    const SUMMARY: u128 = 0x80;
    unlike(divergence, Component::X87Status)
        .and_then(numbers)
        .is_some_and(|(left, _)| left & SUMMARY != 0)
}

/// NaNs, infinities, and encodings that are no number of the format: denormals and pseudo-
/// denormals,
/// unnormals, pseudo-infinities and pseudo-NaNs.
pub(super) fn is_special(value: F80) -> bool {
    let exponent = value.sign_exponent & 0x7fff;
    let integer = value.significand >> 63 == 1;
    match exponent {
        0x7fff => true,
        0 => value.significand != 0,
        _ => !integer,
    }
}

/// Whether a register of the stack holds such a value.
pub(super) fn holds_special(divergence: &Divergence) -> bool {
    state(divergence).x87.st.iter().any(|&value| is_special(value))
}

/// Whether a side of the difference is such a value.
pub(super) fn becomes_special(difference: &Difference) -> bool {
    let value = |bits: u128| F80 { significand: bits as u64, sign_exponent: (bits >> 64) as u16 };
    numbers(difference)
        .is_some_and(|(left, right)| is_special(value(left)) || is_special(value(right)))
}

/// Whether the control word asks for a precision or a rounding other than after FNINIT.
pub(super) fn rounds_specially(divergence: &Divergence) -> bool {
    state(divergence).x87.control & 0xf00 != 0x300
}

// ---- memory --------------------------------------------------------------------------------

pub(super) fn stores_across_pages(divergence: &Divergence) -> bool {
    repeats_into_page(divergence)
        || some_access(divergence, |access| access.writes() && access.crosses_page())
}

pub(super) fn accesses_across_pages(divergence: &Divergence) -> bool {
    repeats_into_page(divergence) || some_access(divergence, Access::crosses_page)
}

/// Whether a string instruction, of whose iterations only the first one's address is known here, came to the
/// start of a page and faulted there.
fn repeats_into_page(divergence: &Divergence) -> bool {
    let repeats = culprit(divergence).is_some_and(is_repeated_string);
    let at_start = matches!(
        divergence.stops.0,
        Stop::Exception { address: Some(address), .. } if GuestAddress(address).is_page_aligned()
    );
    repeats && at_start
}

/// Whether the case lets code be written: a page that is writable and executable, or a writable
/// page that shares its object's bytes with an executable one.
pub(super) fn can_write_code(divergence: &Divergence) -> bool {
    let mappings = &divergence.case.mappings;
    let bytes =
        |mapping: &crate::case::Mapping| mapping.offset..mapping.offset + mapping.range.size();
    mappings.iter().filter(|mapping| mapping.permissions.execute()).any(|code| {
        mappings.iter().filter(|mapping| mapping.permissions.write()).any(|data| {
            let (left, right) = (bytes(code), bytes(data));
            code.object == data.object && left.start < right.end && right.start < left.end
        })
    })
}

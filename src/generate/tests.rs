//! Properties of the generator as a whole.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::OnceLock;

use arbitrary::Unstructured;
use iced_x86::EncodingKind;

use super::*;
use crate::guest::decoder;

fn generator() -> &'static Generator {
    static GENERATOR: OnceLock<Generator> = OnceLock::new();
    GENERATOR.get_or_init(|| Generator::new(&HostFeatures::detect()))
}

fn program(seed: u64, index: u64) -> Program {
    let mut bytes = Vec::new();
    choices(seed, index, &mut bytes);
    generator().program(&mut Unstructured::new(&bytes))
}

fn raw(seed: u64, index: u64) -> Program {
    let mut bytes = Vec::new();
    choices(seed, index, &mut bytes);
    generator().raw(&mut Unstructured::new(&bytes))
}

#[test]
fn every_form_is_in_reach_or_refused() {
    let generator = generator();
    let texts: BTreeSet<String> = generator.forms().iter().map(Form::to_string).collect();
    println!("{} forms, {} different texts", generator.forms().len(), texts.len());
    for (reason, codes) in generator.refused_forms() {
        assert!(!reason.is_empty() && !codes.is_empty());
    }
    assert!(texts.len() > 1000);
}

#[test]
fn structured_programs_are_valid() {
    for index in 0..20_000 {
        let program = program(1, index);
        let valid = program.case.validate();
        assert_eq!(valid, Ok(()), "case {index}, {:?}", program.kind);
    }
}

#[test]
fn raw_programs_are_valid_and_hold_nothing_refused() {
    for index in 0..3_000 {
        let program = raw(1, index);
        assert_eq!(program.case.validate(), Ok(()), "case {index}");
        let code = program.case.initial_bytes(crate::guest::GuestAddress(program.case.state.rip));
        let mut decoder = decoder(code.expect("the entry is mapped"), program.case.state.rip);
        for instruction in decoder.iter().take(20) {
            assert_eq!(
                generator()
                    .table
                    .refusal(instruction.code())
                    .filter(|_| { instruction.code() != Code::Hlt }),
                None,
                "case {index}: {instruction}"
            );
        }
    }
}

#[test]
fn the_same_bytes_give_the_same_program() {
    for index in 0..200 {
        assert_eq!(program(5, index), program(5, index));
        assert_eq!(raw(5, index), raw(5, index));
    }
    assert_ne!(program(5, 0).case, program(5, 1).case);
}

#[test]
fn short_input_gives_valid_programs() {
    let mut bytes = Vec::new();
    choices(9, 9, &mut bytes);
    for length in (0..200).chain((200..bytes.len()).step_by(97)) {
        let bytes = &bytes[..length];
        let program = generator().program(&mut Unstructured::new(bytes));
        assert_eq!(program.case.validate(), Ok(()), "{length} bytes");
        let raw = generator().raw(&mut Unstructured::new(bytes));
        assert_eq!(raw.case.validate(), Ok(()), "{length} bytes, raw");
    }
}

#[test]
fn baseline_programs_have_legacy_encodings_only() {
    for program in (0..2000).map(|index| program(6, index)).filter(|program| program.baseline) {
        for form in program.always_executed {
            let form = generator().forms()[usize::from(form.0)];
            assert_eq!(form.code.op_code().encoding(), EncodingKind::Legacy, "{form}");
        }
    }
}

#[test]
fn every_program_ends_in_its_page() {
    for index in 0..5_000 {
        let program = program(8, index);
        let start = crate::guest::GuestAddress(program.case.state.rip);
        let code = program.case.initial_bytes(start).expect("the entry is mapped");
        // The filler is left at the end, so nothing was cut off.
        assert_eq!(code.last(), Some(&0xcc), "case {index}");
    }
}

#[test]
fn shares_are_as_wanted() {
    let count = 4000;
    let (mut kinds, mut layouts) = (BTreeMap::new(), BTreeMap::new());
    let (mut baseline, mut forms, mut refused, mut executed) = (0, HashSet::new(), 0, 0);
    for index in 0..count {
        let program = program(2, index);
        *kinds.entry(program.kind).or_insert(0) += 1;
        *layouts.entry(format!("{:?}", program.layout)).or_insert(0) += 1;
        baseline += u64::from(program.baseline);
        executed += program.always_executed.len();
        forms.extend(program.always_executed);
        refused += program.refused.len();
    }
    println!("{kinds:?} {layouts:?} {baseline} baseline, {refused} refused, {executed} executed");
    println!("{} of {} forms", forms.len(), generator().forms().len());
    assert!(forms.len() > 1000);
    assert!(kinds[&ProgramKind::Eventful] * 100 / count >= 7);
    assert!(kinds[&ProgramKind::SelfModifying] * 100 / count >= 2);
    assert!(layouts["Standard"] * 100 / count >= 75);
    assert!((40..60).contains(&(baseline * 100 / count)));
    assert!(refused > 0);
}

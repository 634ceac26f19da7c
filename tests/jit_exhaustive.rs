//! Every 8-bit operation on every pair of operands, and every shift and rotation by every count:
//! the translating engine gives the same results and the same flags as silicon, those that manuals
//! call undefined included, wherever the operands are. Guests do the work in loops of their own.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

#[path = "jit_exhaustive/emit.rs"]
mod emit;
#[path = "jit_exhaustive/operations.rs"]
mod operations;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use emit::{FLAGS, RESULT_BYTES, RESULTS_OBJECT, Result, Trial, case};
use iced_x86::Code;
use operations::Shape;
use tregion::case::{Case, Outcome, Stop};
use tregion::engine::Engine;
use tregion::engine::jit::Jit;
use tregion::engine::silicon::Silicon;
use tregion::oracle::compare::compare;

/// Of one case; many times what any takes.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// Both engines, and how much they have done.
struct Pair {
    silicon: Silicon,
    jit: Jit,
    results: usize,
}

/// Runs `body` with engines; one test at a time, since there is room for one big window.
fn with_engines(body: impl FnOnce(&mut Pair)) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pair = Pair { silicon: Silicon::new().unwrap(), jit: Jit::new().unwrap(), results: 0 };
    pair.silicon.set_time_limit(TIME_LIMIT);
    pair.jit.set_time_limit(TIME_LIMIT);
    body(&mut pair);
    println!("{} results", pair.results);
}

/// The results of a run, in order.
fn results(case: &Case, outcome: &Outcome, count: usize) -> Vec<u8> {
    let mut bytes = case.objects[RESULTS_OBJECT.0].contents.clone();
    for change in outcome.memory.iter().filter(|change| change.object == RESULTS_OBJECT) {
        let start = change.page * 4096;
        bytes[start..start + 4096].copy_from_slice(&change.contents);
    }
    bytes.truncate(count * RESULT_BYTES);
    bytes
}

impl Pair {
    /// Tries all with all records on both engines. Gives silicon's results.
    fn agree(&mut self, trials: &[Trial], records: &[u8]) -> Vec<u8> {
        let case = case(trials, records);
        let right = self.silicon.run(&case).unwrap();
        let other = self.jit.run(&case).unwrap();
        let name = trials[0].instruction;
        assert_eq!(right.stop, Stop::Halt, "{name}");
        let size = trials[0].record_bytes;
        let count = records.len() / size * trials.len();
        self.results += count;
        let ours = results(&case, &right, count);
        let theirs = results(&case, &other, count);
        if ours != theirs {
            let place = (0..count).find(|index| {
                let range = index * RESULT_BYTES..(index + 1) * RESULT_BYTES;
                ours[range.clone()] != theirs[range]
            });
            let place = place.unwrap();
            let record = &records[place / trials.len() * size..][..size];
            let (of, at) = (&trials[place % trials.len()].instruction, place * RESULT_BYTES);
            let (right, wrong) = (Result::of(&ours[at..]), Result::of(&theirs[at..]));
            panic!("{of} of {record:x?}: {right:x?} on silicon, {wrong:x?} on the JIT");
        }
        let visible = self.silicon.capabilities().visible.common(self.jit.capabilities().visible);
        let differences = compare(&case, &right, &other, visible);
        assert!(differences.is_empty(), "{name}: {:?}", differences[0]);
        ours
    }
}

#[test]
fn every_byte_operation_on_every_pair_of_operands() {
    with_engines(|pair| {
        for shape in operations::BYTE_OPERATIONS {
            let records = operations::byte_records(shape);
            for trial in operations::byte_trials(shape) {
                pair.agree(&[trial], &records);
            }
        }
    });
}

#[test]
fn every_shift_by_every_count() {
    with_engines(|pair| {
        let (all_counts, no_count) = (operations::shift_records(256), operations::shift_records(1));
        for (number, (by_cl, by_constant, by_one)) in operations::SHIFTS.into_iter().enumerate() {
            for (index, bytes) in [1, 2, 4, 8].into_iter().enumerate() {
                pair.agree(&operations::shifts(by_cl[index], by_one[index], bytes), &all_counts);
                for place in 0..8 {
                    let place = number + place;
                    pair.agree(
                        &operations::constant_shifts(by_constant[index], bytes, place),
                        &no_count,
                    );
                }
            }
        }
        for (by_cl, by_constant) in operations::DOUBLE_SHIFTS {
            for (index, bytes) in [2, 4, 8].into_iter().enumerate() {
                pair.agree(&operations::double_shifts(by_cl[index], bytes), &all_counts);
                for which in 0..8 {
                    let trials =
                        operations::constant_double_shifts(by_constant[index], bytes, which);
                    pair.agree(&trials, &no_count);
                }
            }
        }
    });
}

/// The guests do what they are meant to: silicon's results are those of the manual.
#[test]
fn results_are_those_of_the_operation() {
    with_engines(|pair| {
        let shape = Shape::Binary(Code::Adc_rm8_r8, Some(Code::Adc_r8_rm8));
        let records = operations::byte_records(shape);
        assert_eq!(records.len(), 4 << 18);
        let trial = operations::byte_trials(shape).swap_remove(4);
        let results = pair.agree(&[trial], &records);
        for (record, result) in records.chunks_exact(4).zip(results.chunks_exact(RESULT_BYTES)) {
            let result = Result::of(result);
            let carry = FLAGS[usize::from(record[3])] & 1;
            let sum = u64::from(record[0]) + u64::from(record[1]) + carry;
            assert_eq!(result.first & 0xff, sum & 0xff, "{record:?}");
            assert_eq!(result.first >> 8, 0x0088_7766_5544_3322, "the rest of the register");
            assert_eq!(result.flags & 1, sum >> 8, "{record:?}");
        }
        for shape in [Shape::Product(Code::Div_rm8), Shape::Product(Code::Idiv_rm8)] {
            // No division by zero, and no pair without a result for long.
            assert!(operations::byte_records(shape).len() > 3 << 18);
        }
    });
}

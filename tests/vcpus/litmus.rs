//! Litmus tests on vCPUs: what one processor may see of the order in which others store.
//!
//! A test runs in batches of [`CELLS`] cells, each a pair of words *x* and *y* in lines of their own. In
//! each cell every vCPU executes its few accesses at about the same time as the others. Behind a
//! batch vCPU 0 counts what came out into a histogram, clears all, and the next batch begins. Barriers
//! are the guest's own, so that nothing leaves guest code before the end.
//!
//! Shapes and names are those of Alglave et al., "Herding cats", figure 1 and table 3; what x86
//! forbids is in Owens et al., "A better x86 memory model: x86-TSO".

use std::time::Duration;

use iced_x86::code_asm::{
    AsmRegister64, CodeAssembler, CodeLabel, dword_ptr, qword_ptr, r8, r9, r12, r13, r14, rax, rbp,
    rbx, rcx, rdi, rdx, rsi,
};
use tregion::exec::Exit;
use tregion::guest::{GuestAddress, Permissions};
use tregion::os::pin_to_nth_cpu;

use crate::guest::{Arena, CODE, WORDS, alone, join, time};
use crate::reference;

const CELLS: u64 = 1024;
const CELL: u64 = 128;
const MEMORY: u64 = 0x80_0000;
/// Results of the first vCPU; 16 bytes a cell, this far apart.
const RESULTS: u64 = 0x90_0000;
const RESULTS_OF_ONE: u64 = 0x1_0000;
const BARRIER: u64 = WORDS;
const STOP: u64 = WORDS + 0x40;
const DONE: u64 = WORDS + 0x80;
const HISTOGRAM: u64 = WORDS + 0x1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    X,
    Y,
}
use Place::{X, Y};

#[derive(Clone, Copy, Debug)]
enum Step {
    Store(Place, u32),
    /// Into result 0 or 1 of the vCPU.
    Load(Place, usize),
}
use Step::{Load, Store};

/// What an outcome consists of; each is 0, 1 or 2.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// A vCPU's result.
    Of(usize, usize),
    Final(Place),
}
use Part::{Final, Of};

struct Shape {
    name: &'static str,
    threads: &'static [&'static [Step]],
    /// The outcome that no interleaving of the accesses has.
    relaxed: &'static [(Part, u64)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Plain,
    /// MFENCE between any two accesses.
    Fences,
    /// Stores are XCHG.
    Exchanges,
    /// Behind each store is a LOCKed instruction on the stack.
    Locked,
    /// MFENCE on the first vCPU alone.
    HalfFences,
}

const SB: Shape = Shape {
    name: "SB",
    threads: &[&[Store(X, 1), Load(Y, 0)], &[Store(Y, 1), Load(X, 0)]],
    relaxed: &[(Of(0, 0), 0), (Of(1, 0), 0)],
};
const MP: Shape = Shape {
    name: "MP",
    threads: &[&[Store(X, 1), Store(Y, 1)], &[Load(Y, 0), Load(X, 1)]],
    relaxed: &[(Of(1, 0), 1), (Of(1, 1), 0)],
};
const LB: Shape = Shape {
    name: "LB",
    threads: &[&[Load(X, 0), Store(Y, 1)], &[Load(Y, 0), Store(X, 1)]],
    relaxed: &[(Of(0, 0), 1), (Of(1, 0), 1)],
};
const S: Shape = Shape {
    name: "S",
    threads: &[&[Store(X, 2), Store(Y, 1)], &[Load(Y, 0), Store(X, 1)]],
    relaxed: &[(Of(1, 0), 1), (Final(X), 2)],
};
const R: Shape = Shape {
    name: "R",
    threads: &[&[Store(X, 1), Store(Y, 1)], &[Store(Y, 2), Load(X, 0)]],
    relaxed: &[(Of(1, 0), 0), (Final(Y), 2)],
};
const TWO_PLUS_TWO_W: Shape = Shape {
    name: "2+2W",
    threads: &[&[Store(X, 1), Store(Y, 2)], &[Store(Y, 1), Store(X, 2)]],
    relaxed: &[(Final(X), 1), (Final(Y), 1)],
};
const IRIW: Shape = Shape {
    name: "IRIW",
    threads: &[
        &[Store(X, 1)],
        &[Store(Y, 1)],
        &[Load(X, 0), Load(Y, 1)],
        &[Load(Y, 0), Load(X, 1)],
    ],
    relaxed: &[(Of(2, 0), 1), (Of(2, 1), 0), (Of(3, 0), 1), (Of(3, 1), 0)],
};

impl Place {
    fn offset(self) -> i32 {
        if self == X { 0 } else { 64 }
    }
}

/// Counts a vCPU in at the barrier and waits for all. RBX: the barrier, RBP: what it comes to.
fn barrier(a: &mut CodeAssembler, threads: usize, pause: bool) {
    let mut spin: CodeLabel = a.create_label();
    a.add(rbp, threads as i32).unwrap();
    a.lock().inc(qword_ptr(rbx)).unwrap();
    a.set_label(&mut spin).unwrap();
    if pause {
        a.pause().unwrap();
    }
    a.cmp(qword_ptr(rbx), rbp).unwrap();
    a.jb(spin).unwrap();
}

/// The accesses of one vCPU to the cell at R12; results in RAX and RCX.
fn accesses(a: &mut CodeAssembler, steps: &[Step], variant: Variant) {
    let results: [AsmRegister64; 2] = [rax, rcx];
    for (number, step) in steps.iter().enumerate() {
        if number > 0 && variant == Variant::Fences {
            a.mfence().unwrap();
        }
        match *step {
            Store(place, value) if variant == Variant::Exchanges => {
                a.mov(rdx, u64::from(value)).unwrap();
                a.xchg(qword_ptr(r12 + place.offset()), rdx).unwrap();
            }
            Store(place, value) => {
                a.mov(qword_ptr(r12 + place.offset()), value as i32).unwrap();
                if variant == Variant::Locked {
                    a.lock().add(dword_ptr(iced_x86::code_asm::rsp - 8), 0).unwrap();
                }
            }
            Load(place, result) => {
                a.mov(results[result], qword_ptr(r12 + place.offset())).unwrap();
            }
        }
    }
}

/// Some steps of a counter, another number for each cell and vCPU, so that the accesses of two vCPUs
/// meet now this way, now that.
fn delay(a: &mut CodeAssembler, number: usize) {
    let mut again = a.create_label();
    a.imul_3(rdx, r14, [7, 13, 11, 5][number]).unwrap();
    a.and(rdx, 63).unwrap();
    a.inc(rdx).unwrap();
    a.set_label(&mut again).unwrap();
    a.dec(rdx).unwrap();
    a.jnz(again).unwrap();
}

/// Counts each cell's outcome and clears the cell. The index is the outcome's parts as digits, base 3.
fn count(a: &mut CodeAssembler, parts: &[(Part, u64)]) {
    let mut each = a.create_label();
    a.mov(r12, MEMORY).unwrap();
    a.mov(r13, RESULTS).unwrap();
    a.mov(r14, CELLS).unwrap();
    a.mov(r9, HISTOGRAM).unwrap();
    a.set_label(&mut each).unwrap();
    a.xor(r8, r8).unwrap();
    for (part, _) in parts {
        a.lea(r8, qword_ptr(r8 + r8 * 2)).unwrap();
        match *part {
            Of(thread, result) => {
                let offset = thread as u64 * RESULTS_OF_ONE + result as u64 * 8;
                a.add(r8, qword_ptr(r13 + offset as i32)).unwrap();
            }
            Final(place) => a.add(r8, qword_ptr(r12 + place.offset())).unwrap(),
        }
    }
    a.inc(qword_ptr(r9 + r8 * 8)).unwrap();
    for place in [X, Y] {
        a.mov(qword_ptr(r12 + place.offset()), 0).unwrap();
    }
    a.add(r12, CELL as i32).unwrap();
    a.add(r13, 16).unwrap();
    a.dec(r14).unwrap();
    a.jnz(each).unwrap();
}

fn program(a: &mut CodeAssembler, shape: &Shape, number: usize, variant: Variant) {
    let threads = shape.threads.len();
    let variant = match variant {
        Variant::HalfFences if number == 0 => Variant::Fences,
        Variant::HalfFences => Variant::Plain,
        variant => variant,
    };
    let (mut batch, mut each) = (a.create_label(), a.create_label());
    a.mov(rbx, BARRIER).unwrap();
    a.xor(rbp, rbp).unwrap();
    a.set_label(&mut batch).unwrap();
    a.mov(r12, MEMORY).unwrap();
    a.mov(r13, RESULTS + number as u64 * RESULTS_OF_ONE).unwrap();
    a.mov(r14, CELLS).unwrap();
    a.set_label(&mut each).unwrap();
    // More vCPUs than processors would wait for each other's time slices.
    if threads == 2 {
        barrier(a, threads, false);
    }
    delay(a, number);
    accesses(a, shape.threads[number], variant);
    a.mov(qword_ptr(r13), rax).unwrap();
    a.mov(qword_ptr(r13 + 8), rcx).unwrap();
    a.add(r12, CELL as i32).unwrap();
    a.add(r13, 16).unwrap();
    a.dec(r14).unwrap();
    a.jnz(each).unwrap();
    barrier(a, threads, true);
    if number == 0 {
        count(a, shape.relaxed);
        a.mov(rsi, STOP).unwrap();
        a.mov(rax, qword_ptr(rsi)).unwrap();
        a.mov(rdi, DONE).unwrap();
        a.mov(qword_ptr(rdi), rax).unwrap();
    }
    barrier(a, threads, true);
    a.mov(rdi, DONE).unwrap();
    a.cmp(qword_ptr(rdi), 0).unwrap();
    a.je(batch).unwrap();
    a.hlt().unwrap();
}

/// How often each outcome was seen, as its parts' digits.
struct Seen {
    outcomes: Vec<(Vec<u64>, u64)>,
    relaxed: u64,
    all: u64,
}

fn run(shape: &Shape, variant: Variant, time: Duration) -> Seen {
    let arena = Arena::new();
    arena.map(MEMORY, CELLS * CELL / 0x1000, Permissions::ReadWrite);
    arena.map(RESULTS, 4 * RESULTS_OF_ONE / 0x1000, Permissions::ReadWrite);
    let threads: Vec<_> = (0..shape.threads.len())
        .map(|number| {
            let at = CODE + number as u64 * 0x1000;
            arena.code(at, |a| program(a, shape, number, variant));
            let mut vcpu = arena.vcpu(number, at);
            std::thread::spawn(move || {
                pin_to_nth_cpu(number).unwrap();
                vcpu.run(None)
            })
        })
        .collect();
    std::thread::sleep(time);
    arena.machine.write(GuestAddress(STOP), &1_u64.to_le_bytes()).unwrap();
    for thread in threads {
        assert_eq!(join(shape.name, thread), Exit::Halt);
    }
    let parts = shape.relaxed.len() as u32;
    let digits = |index: u64| (0..parts).rev().map(|part| index / 3_u64.pow(part) % 3).collect();
    let outcomes: Vec<(Vec<u64>, u64)> = (0..3_u64.pow(parts))
        .map(|index| (digits(index), arena.word(HISTOGRAM + index * 8)))
        .filter(|(_, times)| *times > 0)
        .collect();
    let relaxed: Vec<u64> = shape.relaxed.iter().map(|(_, value)| *value).collect();
    let times = outcomes.iter().find(|(outcome, _)| *outcome == relaxed).map_or(0, |seen| seen.1);
    Seen { relaxed: times, all: outcomes.iter().map(|(_, times)| times).sum(), outcomes }
}

/// Runs a shape in all variants. `allowed`: the relaxed outcome may be seen where nothing orders a
/// store before a later load.
fn judge(shape: &Shape, allowed: Option<fn(Duration) -> reference::Seen>) {
    let _alone = alone();
    let time = time(0.15);
    for variant in [Variant::Plain, Variant::Fences, Variant::Exchanges, Variant::Locked] {
        let seen = run(shape, variant, time);
        let (name, times) = (shape.name, seen.relaxed);
        println!("{name} {variant:?}: {times} of {} relaxed, {:?}", seen.all, seen.outcomes);
        // Four vCPUs on two processors may wait for a whole time slice at each barrier.
        assert!(seen.all >= CELLS, "{name}: nothing ran");
        if seen.outcomes.len() < 2 {
            println!("{name}: the vCPUs never met: this says little");
        }
        match allowed {
            Some(reference) if variant == Variant::Plain => {
                let host = reference(time);
                println!("{name} on the host: {} of {} relaxed", host.relaxed, host.all);
                let often = host.relaxed as f64 / host.all as f64 * seen.all as f64 > 1000.0;
                assert!(
                    times > 0 || !often,
                    "{name}: the host shows the relaxed outcome, vCPUs not"
                );
            }
            _ => assert_eq!(times, 0, "{name} {variant:?}: x86-TSO forbids {:?}", shape.relaxed),
        }
    }
}

#[test]
fn store_buffering() {
    judge(&SB, Some(reference::store_buffering));
}

#[test]
fn message_passing() {
    judge(&MP, None);
}

#[test]
fn load_buffering() {
    judge(&LB, None);
}

#[test]
fn a_store_behind_a_load() {
    judge(&S, None);
}

#[test]
fn a_load_behind_a_store() {
    judge(&R, Some(reference::r));
}

#[test]
fn two_and_two_writes() {
    judge(&TWO_PLUS_TWO_W, None);
}

#[test]
fn independent_reads_of_independent_writes() {
    judge(&IRIW, None);
}

/// The harness finds what it looks for, where a fence is missing on one side only.
#[test]
fn a_missing_fence_is_seen() {
    let _alone = alone();
    let seen = run(&SB, Variant::HalfFences, time(0.3));
    let host = reference::store_buffering(time(0.15));
    println!("SB half fenced: {} of {} relaxed", seen.relaxed, seen.all);
    assert!(seen.relaxed > 0 || host.relaxed < 1000, "a missing fence goes unnoticed");
}

//! Traces: what was executed, in order and once, however it was executed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::code_asm::{esi, ptr, rax, rcx, rdi};
use tregion::exec::{Exit, HookContext, HookError, TraceOf};
use tregion::guest::{GuestAddress, Permissions};

use crate::guest::{
    CODE, DATA, Guest, Notes, RAX, RCX, RDI, RSI, assemble, counter, guest, long, range,
};

/// What [`counter`] executes.
fn counted(times: u32) -> Vec<u64> {
    let passes = (0..times).flat_map(|_| [5, 8, 9, 11]);
    [0].into_iter().chain(passes).chain([13]).collect()
}

/// Where control arrives in it.
fn arrivals(times: u32) -> Vec<u64> {
    let passes = (1..times).map(|_| 5);
    [0].into_iter().chain(passes).chain([13]).collect()
}

/// In how many instructions at a time a short guest runs.
const PIECES: [Option<u64>; 8] =
    [None, Some(1), Some(2), Some(3), Some(8), Some(9), Some(10), Some(13)];

fn trace(guest: &Guest, of: TraceOf, from: u64, to: u64) -> Notes<u64> {
    let notes = Notes::new();
    let noted = notes.clone();
    let (from, to) = (GuestAddress(from), GuestAddress(to));
    let note = move |traced: tregion::exec::Traced<'_>| {
        traced.addresses().for_each(|address| noted.note(address.0 - CODE));
    };
    guest.machine.trace(of, from..to, note).unwrap();
    notes
}

fn instructions(guest: &Guest) -> Notes<u64> {
    trace(guest, TraceOf::Instructions, 0, u64::MAX)
}

fn blocks(guest: &Guest) -> Notes<u64> {
    trace(guest, TraceOf::Blocks, 0, u64::MAX)
}

/// Runs from the start to `hlt` in pieces.
fn run_in_pieces(guest: &mut Guest, budget: Option<u64>) {
    guest.vcpu.set_rip(GuestAddress(CODE));
    loop {
        match guest.vcpu.run(budget) {
            Exit::Budget | Exit::Stopped | Exit::Requested => {}
            exit => return assert_eq!(exit, Exit::Halt, "at {}", guest.vcpu.rip()),
        }
    }
}

#[test]
fn a_trace_has_each_instruction_once() {
    let mut guest = counter(3);
    guest.run();
    let all = instructions(&guest);
    for budget in PIECES {
        run_in_pieces(&mut guest, budget);
        assert_eq!(all.take(), counted(3), "in pieces of {budget:?}");
    }
}

/// POPF that sets TF is left to the run loop in its middle.
#[test]
fn what_is_left_in_its_middle_is_told_once() {
    const TF: i32 = 1 << 8;
    let mut guest = guest(|a| {
        (0..9).for_each(|_| a.nop().unwrap());
        a.push(TF).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let traced = instructions(&guest);
    let (called, noted) = (Notes::new(), Notes::new());
    let note = called.clone();
    guest.machine.hook_code(.., move |context| note.note(context.rip().0 - CODE)).unwrap();
    let note = noted.clone();
    guest.machine.hook_blocks(.., move |context| note.note(context.rip().0 - CODE)).unwrap();
    let expected: Vec<u64> = (0..=9).chain([14, 15]).collect();
    for budget in [None, Some(100)] {
        guest.vcpu.set_rip(GuestAddress(CODE));
        assert!(matches!(guest.vcpu.run(budget), Exit::Exception { vector: 1, .. }));
        assert_eq!((called.take(), traced.take()), (expected.clone(), expected.clone()));
        assert_eq!(noted.take(), [0]);
        guest.vcpu.set_rflags(guest.vcpu.rflags() & !(TF as u64));
    }
}

/// What a hook's panic ends is in the trace to its end, and goes on from there.
#[test]
fn a_panic_in_a_hook_loses_and_repeats_nothing() {
    for budget in [None, Some(100)] {
        let mut guest = counter(3);
        let all = instructions(&guest);
        let mut panics = true;
        let place = GuestAddress(CODE + 9);
        let panicking = move |context: &mut HookContext<'_>| {
            let now = context.gpr(RAX) == 2 && std::mem::take(&mut panics);
            assert!(!now, "as wanted");
        };
        guest.machine.hook_code(place..=place, panicking).unwrap();
        guest.vcpu.set_rip(GuestAddress(CODE));
        let run = AssertUnwindSafe(|| guest.vcpu.run(budget));
        assert!(catch_unwind(run).is_err());
        assert_eq!(guest.vcpu.rip(), place);
        assert_eq!(guest.vcpu.run(budget), Exit::Halt);
        assert_eq!(all.take(), counted(3));
    }
}

#[test]
fn a_trace_of_blocks_has_each_arrival_once() {
    let mut guest = counter(3);
    guest.run();
    let notes = blocks(&guest);
    for budget in PIECES {
        run_in_pieces(&mut guest, budget);
        assert_eq!(notes.take(), [0, 5, 5, 13], "in pieces of {budget:?}");
    }
}

#[test]
fn a_trace_may_be_longer_than_there_is_room_at_once() {
    const TIMES: u32 = 30_011;
    for budget in [None, Some(1 << 30), Some(1009)] {
        let mut guest = counter(TIMES);
        let all = instructions(&guest);
        run_in_pieces(&mut guest, budget);
        assert!(all.take() == counted(TIMES), "in pieces of {budget:?}");
    }
    let mut guest = counter(TIMES);
    let notes = blocks(&guest);
    for budget in [None, Some(1 << 30), Some(9)] {
        run_in_pieces(&mut guest, budget);
        assert!(notes.take() == arrivals(TIMES), "in pieces of {budget:?}");
    }
}

#[test]
fn what_is_not_done_is_not_in_the_trace() {
    for of in [TraceOf::Instructions, TraceOf::Blocks] {
        let mut guest = guest(|a| {
            a.mov(rax, ptr(rdi)).unwrap();
            a.cpuid().unwrap();
            a.jmp(CODE + 7).unwrap();
            a.mov(ptr(rdi), rax).unwrap();
            a.hlt().unwrap();
        });
        let notes = trace(&guest, of, 0, u64::MAX);
        guest.vcpu.set_gpr(RDI, 0x90_0000);
        for _ in 0..3 {
            assert!(matches!(guest.vcpu.run(None), Exit::Exception { vector: 14, .. }));
            assert_eq!(notes.take(), [] as [u64; 0], "{of:?}");
        }
        guest.machine.map(range(0x90_0000, 1), Permissions::Read).unwrap();
        for budget in [None, Some(100), Some(1)] {
            while guest.vcpu.run(budget) == Exit::Budget {}
            assert_eq!(guest.vcpu.rip().0, CODE + 7);
            let done: &[u64] = if of == TraceOf::Blocks { &[0] } else { &[0, 3, 5] };
            assert_eq!(notes.take(), if budget.is_none() { done } else { &[] }, "{of:?}");
        }
        guest.machine.protect(range(0x90_0000, 1), Permissions::ReadWrite).unwrap();
        assert_eq!(guest.vcpu.run(None), Exit::Halt);
        let done: &[u64] = if of == TraceOf::Blocks { &[7] } else { &[7, 10] };
        assert_eq!(notes.take(), done, "{of:?}");
    }
}

#[test]
fn long_blocks_assists_and_page_ends_are_no_arrivals() {
    let mut guest = long();
    let notes = blocks(&guest);
    for hooked in [false, true] {
        for budget in [None, Some(7), Some(100)] {
            run_in_pieces(&mut guest, budget);
            assert_eq!(notes.take(), [0], "in pieces of {budget:?}, hooked: {hooked}");
        }
        guest.machine.hook_blocks(.., |_| {}).unwrap();
        guest.machine.hook_code(.., |_| {}).unwrap();
    }
}

#[test]
fn who_falls_into_the_range_arrives_there() {
    for (from, to, expected) in [
        (0, 0x1000, &[0, 5, 13][..]),
        (8, 0x1000, &[8, 8, 13]),
        // No instruction starts at 6; the first one behind it is where control arrives.
        (6, 9, &[8, 8]),
    ] {
        let mut guest = counter(2);
        let notes = trace(&guest, TraceOf::Blocks, CODE + from, CODE + to);
        for budget in [None, Some(100), Some(9), Some(1)] {
            run_in_pieces(&mut guest, budget);
            assert_eq!(notes.take(), expected, "{from} to {to} in pieces of {budget:?}");
        }
    }
}

#[test]
fn hooks_and_a_trace_do_not_disturb_each_other() {
    for of in [TraceOf::Instructions, TraceOf::Blocks] {
        let mut guest = counter(3);
        let hooked = Notes::new();
        let noted = hooked.clone();
        let notes = trace(&guest, of, 0, u64::MAX);
        guest.machine.hook_blocks(.., |context| context.stop()).unwrap();
        let stop = GuestAddress(CODE + 8)..=GuestAddress(CODE + 9);
        guest.machine.hook_code(stop, |context| context.stop()).unwrap();
        guest.machine.hook_code(.., move |context| noted.note(context.rip().0 - CODE)).unwrap();
        let expected = match of {
            TraceOf::Instructions => counted(3),
            TraceOf::Blocks => arrivals(3),
        };
        for budget in [None, Some(100), Some(9), Some(1)] {
            run_in_pieces(&mut guest, budget);
            assert_eq!(notes.take(), expected, "{of:?} in pieces of {budget:?}");
            assert_eq!(hooked.take(), counted(3), "{of:?} in pieces of {budget:?}");
        }
    }
}

/// The block goes, its memory comes to be used again, and the vCPU is asked to leave, all the time.
#[test]
fn nothing_is_lost_or_noted_twice_while_code_is_retired() {
    const TIMES: u32 = 20_000;
    for of in [TraceOf::Instructions, TraceOf::Blocks] {
        for budget in [None, Some(1_000_000)] {
            let mut guest = counter(TIMES);
            let notes = trace(&guest, of, 0, u64::MAX);
            let (machine, kick, over) =
                (guest.machine.clone(), guest.vcpu.kick(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Acquire) {
                        machine.invalidate(range(CODE, 1));
                        kick.ask();
                        machine.reclaim();
                    }
                });
                run_in_pieces(&mut guest, budget);
                over.store(true, Ordering::Release);
            });
            assert_eq!(guest.vcpu.gpr(RAX), u64::from(TIMES));
            let expected = match of {
                TraceOf::Instructions => counted(TIMES),
                TraceOf::Blocks => arrivals(TIMES),
            };
            assert!(notes.take() == expected, "{of:?}, budget {budget:?}");
        }
    }
}

#[test]
fn a_repeated_instruction_is_one_and_a_call_is_traced_across_pages() {
    let mut guest = guest(|a| {
        a.rep().stosb().unwrap();
        a.call(CODE + 0x1000).unwrap();
        a.hlt().unwrap();
    });
    let callee = assemble(CODE + 0x1000, |a| {
        a.inc(rcx).unwrap();
        a.ret().unwrap();
    });
    guest.machine.write(GuestAddress(CODE + 0x1000), &callee).unwrap();
    let notes = instructions(&guest);
    for budget in [None, Some(3)] {
        guest.vcpu.set_gpr(RCX, 0x4000);
        guest.vcpu.set_gpr(RDI, DATA);
        run_in_pieces(&mut guest, budget);
        assert_eq!(notes.take(), [0, 2, 0x1000, 0x1003, 7]);
    }
}

#[test]
fn there_is_one_trace_and_it_can_be_taken_away() {
    let mut guest = counter(2);
    let notes = Notes::new();
    let noted = notes.clone();
    let note = move |traced: tregion::exec::Traced<'_>| noted.note(traced.addresses().len());
    let id = guest.machine.trace(TraceOf::Instructions, .., note).unwrap();
    let second = guest.machine.trace(TraceOf::Blocks, .., |_| {});
    assert!(matches!(second, Err(HookError::Traced)));
    guest.run();
    assert_eq!(notes.take(), [10]);
    assert!(guest.machine.remove_hook(id));
    assert!(!guest.machine.remove_hook(id));
    guest.run();
    assert_eq!(notes.take(), [] as [usize; 0]);
    let notes = blocks(&guest);
    guest.run();
    assert_eq!(notes.take(), [0, 5, 13]);
}

#[test]
fn an_arrival_behind_a_false_one() {
    // `cpuid; again: mov rax, [rdi]; nop (five times); dec esi; jnz again; hlt`: who comes to `again` at 2 from
    // above does not arrive there, who jumps there does.
    let mut guest = guest(|a| {
        let mut again = a.create_label();
        a.cpuid().unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(rax, ptr(rdi)).unwrap();
        for _ in 0..5 {
            a.nop().unwrap();
        }
        a.dec(esi).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    let end = guest.end - CODE - 1;
    let notes = blocks(&guest);
    for budget in (8..60).map(Some).chain([None]) {
        for times in [1, 2, 3, 9] {
            guest.vcpu.set_gpr(RSI, times as u64);
            guest.vcpu.set_gpr(RDI, DATA);
            run_in_pieces(&mut guest, budget);
            let mut expected = vec![2; times + 1];
            (expected[0], expected[times]) = (0, end);
            assert_eq!(notes.take(), expected, "{times} times in pieces of {budget:?}");
        }
    }
    // A fault at the second arrival, and at the third.
    guest.vcpu.set_gpr(RSI, 100);
    guest.vcpu.set_gpr(RDI, DATA + 0x4000);
    guest.vcpu.set_rip(GuestAddress(CODE));
    for expected in [&[0][..], &[]] {
        assert!(matches!(guest.vcpu.run(None), Exit::Exception { vector: 14, .. }));
        assert_eq!(notes.take(), expected);
    }
    guest.vcpu.set_gpr(RDI, DATA);
    assert_eq!(guest.vcpu.run(None), Exit::Halt);
    assert_eq!(notes.take().len(), 100);
}

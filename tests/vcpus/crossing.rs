//! Code that one processor changes while another executes it: by the guest's own atomic stores, by the
//! host, in loops that leave for no other reason. What was executed is the old code or the new, and the
//! new once the change is known to be complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, ecx, edx, qword_ptr, r8, r9, r10, r11, r12, r13, r14, r15, rax,
    rbx, rcx, rdx, rsi,
};
use tregion::exec::Exit;
use tregion::guest::{GuestAddress, Permissions};

use crate::guest::{Arena, CODE, PATIENCE, R8, R9, RAX, RBX, WORDS, alone, assemble, join, time};

const TARGET: u64 = 0x60_0000;
const OTHER: u64 = 0x61_0000;
const HLT: u8 = 0xf4;
const STOP: u64 = WORDS;

/// Waits for the end of a run that only a change of code can end.
fn leaves(what: &str, thread: std::thread::JoinHandle<Exit>) {
    assert_eq!(join(what, thread), Exit::Halt, "{what}");
}

/// Loops, the address that they are to be patched at, and whether it is in another page.
fn endless(kind: usize) -> (Vec<u8>, Vec<u8>, u64) {
    let mut at = 0;
    let first = assemble(TARGET, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 1).unwrap();
        a.set_label(&mut again).unwrap();
        at = TARGET + 5;
        match kind {
            // A jump to itself; a loop that is one block; one of two blocks.
            0 => a.jmp(again).unwrap(),
            1 => {
                a.inc(rax).unwrap();
                a.test(ecx, ecx).unwrap();
                a.jnz(again).unwrap();
            }
            2 => {
                let mut skip = a.create_label();
                a.inc(rax).unwrap();
                a.test(ecx, ecx).unwrap();
                a.jz(skip).unwrap();
                a.inc(rdx).unwrap();
                a.set_label(&mut skip).unwrap();
                a.jmp(again).unwrap();
            }
            // Through another page, directly; by a call there; by an indirect jump here.
            3 => a.jmp(OTHER).unwrap(),
            4 => {
                a.call(OTHER).unwrap();
                a.jmp(again).unwrap();
            }
            _ => {
                a.mov(rsi, TARGET + 5).unwrap();
                a.jmp(rsi).unwrap();
            }
        }
    });
    let second = assemble(OTHER, |a| {
        a.inc(rbx).unwrap();
        if kind == 3 { a.jmp(TARGET + 5).unwrap() } else { a.ret().unwrap() }
    });
    if kind == 3 || kind == 4 {
        // It is the other page that changes, half of the time.
        at = OTHER;
    }
    (first, second, at)
}

/// Endless loops end when a byte of them is replaced.
fn loops_end(mut patch: impl FnMut(&Arena, u64)) {
    let _alone = alone();
    let arena = Arena::new();
    arena.map(TARGET, 1, Permissions::ReadWriteExecute);
    arena.map(OTHER, 1, Permissions::ReadWriteExecute);
    let until = Instant::now() + time(0.4);
    let mut round = 0;
    while Instant::now() < until {
        let kind = round % 6;
        let (first, second, at) = endless(kind);
        arena.machine.write(GuestAddress(TARGET), &first).unwrap();
        arena.machine.write(GuestAddress(OTHER), &second).unwrap();
        let at = if round % 4 == 3 { TARGET + 5 } else { at };
        let mut vcpu = arena.vcpu(0, TARGET);
        let thread = std::thread::spawn(move || vcpu.run(None));
        // Before it has begun, while it is translated, and while it runs.
        std::thread::sleep(Duration::from_micros([0, 30, 100, 400][round / 6 % 4]));
        patch(&arena, at);
        leaves(&format!("loop {kind}, patched at {at:#x}"), thread);
        round += 1;
        if round % 100 == 0 {
            // Back to pages whose code is not written often.
            arena.machine.flush();
        }
    }
    println!("{round} loops left");
    arena.check_emptied();
}

#[test]
fn loops_that_the_host_patches() {
    loops_end(|arena, at| arena.machine.write(GuestAddress(at), &[HLT]).unwrap());
}

#[test]
fn loops_that_another_vcpu_patches() {
    loops_end(|arena, at| {
        let word = arena.word(at) & !0xff | u64::from(HLT);
        arena.storer().store(at, word);
    });
}

#[derive(Clone, Copy, Debug)]
enum Writer {
    Exchange,
    CompareExchange,
    Store,
}

/// Two encodings of eight bytes, at an address that is a multiple of eight.
const VALUES: [u32; 2] = [0x1122_3344, 0x5566_7788];

fn encoding(value: u32) -> u64 {
    // nop dword [rax]; mov eax, value: the number is four bytes at a multiple of four.
    0xb800_1f0f | u64::from(value) << 32
}

/// Writes the two encodings R8 and R9 alternately, RCX times.
fn write_over(a: &mut CodeAssembler, writer: Writer) {
    let mut again = a.create_label();
    a.mov(r11, TARGET).unwrap();
    a.set_label(&mut again).unwrap();
    match writer {
        Writer::Exchange => {
            a.mov(rax, r8).unwrap();
            a.shr(rax, 32).unwrap();
            a.xchg(dword_ptr(r11 + 4), eax).unwrap();
        }
        Writer::CompareExchange => {
            a.mov(eax, dword_ptr(r11 + 4)).unwrap();
            a.mov(rdx, r8).unwrap();
            a.shr(rdx, 32).unwrap();
            a.lock().cmpxchg(dword_ptr(r11 + 4), edx).unwrap();
        }
        Writer::Store => a.mov(qword_ptr(r11), r8).unwrap(),
    }
    a.xchg(r8, r9).unwrap();
    a.dec(rcx).unwrap();
    a.jnz(again).unwrap();
    a.hlt().unwrap();
}

/// Calls the code and counts what it returns, in R12, R13 and, if it is neither, in R14; until the
/// writer is done. Then, behind a serialising instruction, RBX is what it returns.
fn execute(a: &mut CodeAssembler) {
    let (mut again, mut second, mut next) = (a.create_label(), a.create_label(), a.create_label());
    let mut other = a.create_label();
    a.mov(r15, STOP).unwrap();
    a.set_label(&mut again).unwrap();
    a.call(TARGET).unwrap();
    a.cmp(eax, VALUES[0] as i32).unwrap();
    a.jne(second).unwrap();
    a.inc(r12).unwrap();
    a.jmp(next).unwrap();
    a.set_label(&mut second).unwrap();
    a.cmp(eax, VALUES[1] as i32).unwrap();
    a.jne(other).unwrap();
    a.inc(r13).unwrap();
    a.jmp(next).unwrap();
    a.set_label(&mut other).unwrap();
    a.inc(r14).unwrap();
    a.mov(r10, rax).unwrap();
    a.set_label(&mut next).unwrap();
    a.cmp(qword_ptr(r15), 0).unwrap();
    a.je(again).unwrap();
    a.cpuid().unwrap();
    a.call(TARGET).unwrap();
    a.mov(rbx, rax).unwrap();
    a.hlt().unwrap();
}

/// `flushes`: pages are made ones that are not often written, over and over.
fn atomic_patches(writer: Writer, flushes: bool) {
    let arena = Arena::new();
    arena.map(TARGET, 1, Permissions::ReadWriteExecute);
    arena.machine.write(GuestAddress(TARGET), &encoding(VALUES[0]).to_le_bytes()).unwrap();
    arena.machine.write(GuestAddress(TARGET + 8), &[0xc3]).unwrap();
    arena.code(CODE, execute);
    arena.code(CODE + 0x1000, |a| write_over(a, writer));
    let mut reader = arena.vcpu(0, CODE);
    let reader = std::thread::spawn(move || (reader.run(None), reader.state()));
    let until = Instant::now() + time(0.25);
    let (mut written, mut last) = (0_u64, 0);
    let mut vcpu = arena.vcpu(1, CODE + 0x1000);
    while Instant::now() < until {
        let times = if flushes { 1 } else { 100_001 };
        vcpu.set_rip(GuestAddress(CODE + 0x1000));
        vcpu.set_gpr(R8, encoding(VALUES[1 - last]));
        vcpu.set_gpr(R9, encoding(VALUES[last]));
        vcpu.set_gpr(1, times);
        assert_eq!(vcpu.run(None), Exit::Halt);
        written += times;
        // An odd number of them: the last is the first.
        last = 1 - last;
        if flushes {
            arena.machine.flush();
        }
    }
    arena.storer().store(STOP, 1);
    let (exit, state) = join("the reader", reader);
    let [first, second, neither] = [state.gpr[12], state.gpr[13], state.gpr[14]];
    println!("{writer:?}, flushes {flushes}: {written} written; {first} and {second} executed");
    assert_eq!(exit, Exit::Halt, "at {:#x}", state.rip);
    assert_eq!(neither, 0, "{:#x} was executed, which was never there", state.gpr[10]);
    assert_eq!(state.gpr[RBX], u64::from(VALUES[last]), "the last is seen in the end");
    if first == 0 || second == 0 {
        println!("the reader was not running while the writer was: this says little");
    }
    arena.check_emptied();
}

#[test]
fn an_immediate_that_is_exchanged() {
    let _alone = alone();
    for flushes in [false, true] {
        for writer in [Writer::Exchange, Writer::CompareExchange, Writer::Store] {
            atomic_patches(writer, flushes);
        }
    }
}

/// One block: takes the version that is complete, takes its time, and returns its own, all without a
/// way out between.
fn long_block(number: u64) -> Vec<u8> {
    assemble(TARGET, |a| {
        a.mov(r11, WORDS + 0x80).unwrap();
        for _ in 0..12 {
            a.rdtsc().unwrap();
        }
        a.mov(r8, qword_ptr(r11)).unwrap();
        a.mov(eax, number as u32).unwrap();
        a.hlt().unwrap();
    })
}

/// When a host's write returns, no vCPU is in what was there before, the middle of a block included.
/// `often`: the page has been written often before.
fn no_vcpu_is_in_old_code(permissions: Permissions, often: bool) {
    let _alone = alone();
    let arena = Arena::new();
    arena.map(TARGET, 1, permissions);
    arena.machine.write(GuestAddress(TARGET), &long_block(1)).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let mut vcpu = arena.vcpu(0, TARGET);
    let stop = Arc::clone(&over);
    let reader = std::thread::spawn(move || {
        let (mut calls, mut stale) = (0_u64, 0_u64);
        while !stop.load(Ordering::SeqCst) {
            vcpu.set_rip(GuestAddress(TARGET));
            assert_eq!(vcpu.run(None), Exit::Halt, "at {}", vcpu.rip());
            calls += 1;
            stale += u64::from(vcpu.gpr(RAX) < vcpu.gpr(R8));
        }
        (calls, stale)
    });
    let (until, mut storer) = (Instant::now() + time(0.5), arena.storer());
    let mut number = 1;
    while Instant::now() < until {
        number += 1;
        arena.machine.write(GuestAddress(TARGET), &long_block(number)).unwrap();
        storer.store(WORDS + 0x80, number);
        if !often {
            arena.machine.flush();
        }
    }
    over.store(true, Ordering::SeqCst);
    let (calls, stale) = join("the reader", reader);
    println!("{permissions}, often {often}: {number} versions, {stale} of {calls} calls stale");
    assert_eq!(
        stale, 0,
        "of {calls} calls: code ran on after the write that replaced it had returned"
    );
    arena.check_emptied();
}

#[test]
fn no_vcpu_is_in_code_that_was_written() {
    no_vcpu_is_in_old_code(Permissions::ReadWriteExecute, false);
    no_vcpu_is_in_old_code(Permissions::ReadExecute, false);
}

#[test]
fn no_vcpu_is_in_code_that_is_written_often() {
    no_vcpu_is_in_old_code(Permissions::ReadWriteExecute, true);
}

/// Whoever is the second to invalidate waits as well: to the vCPU it is the same code.
#[test]
fn the_second_to_invalidate_waits_too() {
    let _alone = alone();
    written_while_it_runs(false);
    written_while_it_runs(true);
}

/// `second`: the code that is written has been invalidated, without waiting, right before.
fn written_while_it_runs(second: bool) {
    let (until, mut rounds, mut inside) = (Instant::now() + time(0.4), 0, 0);
    while Instant::now() < until {
        let arena = Arena::new();
        arena.map(TARGET, 5, Permissions::ReadExecute);
        let steps = WORDS + 0x80;
        // Without a jump, but for some hundred cycles or more after each step.
        let code = assemble(TARGET, |a| {
            a.mov(r11, steps).unwrap();
            for step in 1..200 {
                a.mov(qword_ptr(r11), step).unwrap();
                (0..40).for_each(|_| a.fsqrt().unwrap());
            }
            a.hlt().unwrap();
        });
        arena.machine.write(GuestAddress(TARGET), &code).unwrap();
        let mut vcpu = arena.vcpu(0, TARGET);
        let thread = std::thread::spawn(move || vcpu.run(None));
        let begun = Instant::now();
        while arena.word(steps) == 0 {
            assert!(begun.elapsed() < PATIENCE, "the vCPU does not begin");
        }
        let page = crate::guest::range(TARGET, 5);
        if second {
            arena.machine.invalidate_soon(page);
        }
        arena.machine.write(GuestAddress(TARGET), &[HLT; 0x5000]).unwrap();
        // From here on nothing that was there before may store.
        let before = arena.word(steps);
        assert_eq!(join("the vCPU", thread), Exit::Halt);
        inside += u64::from(arena.word(steps) != before);
        rounds += 1;
    }
    println!("{rounds} times written, second {second}: {inside} times the old code ran on");
    assert_eq!(inside, 0, "of {rounds} times the old code ran on");
}

/// A vCPU that has left old code and is in new code by now keeps nobody waiting, though it never leaves
/// that for any other reason.
#[test]
fn invalidation_ends_while_a_vcpu_runs_on() {
    let _alone = alone();
    let arena = Arena::new();
    arena.map(TARGET, 1, Permissions::ReadExecute);
    arena.code(TARGET, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.jmp(again).unwrap();
    });
    let mut vcpu = arena.vcpu(0, TARGET);
    let kick = vcpu.kick();
    let runner = std::thread::spawn(move || vcpu.run(None));
    let machine = arena.machine.clone();
    let until = Instant::now() + time(0.5);
    let rounds = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&rounds);
    let invalidator = std::thread::spawn(move || {
        while Instant::now() < until {
            machine.invalidate(crate::guest::range(TARGET, 1));
            counts.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut last = (0, Instant::now());
    while !invalidator.is_finished() {
        let now = rounds.load(Ordering::SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        }
        if last.1.elapsed() > PATIENCE / 3 {
            // Lets the other threads end.
            kick.ask();
            panic!("round {now} of invalidation does not return while a vCPU loops");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{} rounds of invalidation", rounds.load(Ordering::SeqCst));
    kick.ask();
    assert_eq!(join("the vCPU", runner), Exit::Requested);
    arena.check_emptied();
}

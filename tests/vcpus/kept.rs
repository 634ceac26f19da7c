//! A hook that a vCPU has called and whose lock it keeps for its next call: another calls it all the same,
//! wherever the first is meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use iced_x86::code_asm::{qword_ptr, r12, rax, rcx};
use tregion::exec::{Exit, HookContext};
use tregion::guest::GuestAddress;

use crate::guest::{Arena, CODE, PATIENCE, RAX, WORDS, alone, join, range};

/// The second instruction, which has a hook: the first one's would be called before there is any guest code to be in.
/// Control goes on where R12 says.
const HOOKED: u64 = CODE + 1;
const END: u64 = CODE + 0x100;
/// Where the first vCPU waits: in guest code until [`STOP`] is not zero, and in what the host has attached.
const SPIN: u64 = CODE + 0x200;
const OTHER_HOOK: u64 = CODE + 0x300;
const MEMORY_HOOK: u64 = CODE + 0x400;
const DEVICE: u64 = CODE + 0x500;
const STOP: u64 = WORDS;
const WATCHED: u64 = WORDS + 0x2000;
const REGISTERS: u64 = 0x80_0000;

fn guest_code(arena: &Arena) {
    arena.code(CODE, |a| {
        a.nop().unwrap();
        a.nop().unwrap();
        a.jmp(r12).unwrap();
    });
    arena.code(END, |a| a.hlt().unwrap());
    arena.code(SPIN, |a| {
        let mut again = a.create_label();
        a.mov(rax, STOP).unwrap();
        a.set_label(&mut again).unwrap();
        a.cmp(qword_ptr(rax), 0).unwrap();
        a.je(again).unwrap();
        a.hlt().unwrap();
    });
    arena.code(OTHER_HOOK, |a| {
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    for (at, address) in [(MEMORY_HOOK, WATCHED), (DEVICE, REGISTERS)] {
        arena.code(at, |a| {
            a.mov(rax, address).unwrap();
            a.mov(rax, qword_ptr(rax)).unwrap();
            a.hlt().unwrap();
        });
    }
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_hook_whose_lock_is_kept_is_called_by_others() {
    let _alone = alone();
    for place in [SPIN, OTHER_HOOK, MEMORY_HOOK, DEVICE] {
        let arena = Arena::new();
        guest_code(&arena);
        let calls = Arc::new(AtomicU64::new(0));
        // Whoever waits in what is attached, and whether it may go on.
        let (inside, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let hold = || {
            let (inside, open) = (Arc::clone(&inside), Arc::clone(&open));
            move || {
                inside.store(true, Ordering::SeqCst);
                wait("the host lets nobody go on", || open.load(Ordering::SeqCst));
            }
        };
        let (machine, counted) = (&arena.machine, Arc::clone(&calls));
        let at = |address| GuestAddress(address)..=GuestAddress(address);
        machine
            .hook_code(at(HOOKED), move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
            })
            .unwrap();
        let held = hold();
        machine.hook_code(at(OTHER_HOOK), move |_| held()).unwrap();
        let held = hold();
        machine.hook_memory(at(WATCHED), move |_| held()).unwrap();
        let held = hold();
        machine.map_mmio(range(REGISTERS, 1), move |_| held()).unwrap();
        let vcpu = |number, then| {
            let mut vcpu = arena.vcpu(number, CODE);
            vcpu.set_gpr(12, then);
            vcpu
        };

        let mut storer = arena.storer();
        storer.store(STOP, 1);
        let mut first = vcpu(0, place);
        // Until nothing but guest code is between the hook and the place.
        for _ in 0..8 {
            first.set_rip(GuestAddress(CODE));
            assert_eq!(first.run(None), Exit::Halt);
        }
        storer.store(STOP, 0);
        open.store(false, Ordering::SeqCst);
        inside.store(false, Ordering::SeqCst);
        calls.store(0, Ordering::SeqCst);
        first.set_rip(GuestAddress(CODE));
        let first = std::thread::spawn(move || first.run(None));
        wait("the first one calls no hook", || calls.load(Ordering::SeqCst) == 1);
        wait("the first one never waits", || place == SPIN || inside.load(Ordering::SeqCst));

        let mut second = vcpu(1, END);
        let second = std::thread::spawn(move || second.run(None));
        assert_eq!(join(&format!("a call beside one at {place:#x}"), second), Exit::Halt);
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        storer.store(STOP, 1);
        open.store(true, Ordering::SeqCst);
        assert_eq!(join("the first one", first), Exit::Halt);
    }
}

#[test]
fn two_hooks_in_turns() {
    let _alone = alone();
    let arena = Arena::new();
    arena.code(CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.inc(rax).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    let calls = [0, 3].map(|offset| {
        let sum = Arc::new(AtomicU64::new(0));
        let added = Arc::clone(&sum);
        let here = GuestAddress(CODE + offset)..=GuestAddress(CODE + offset);
        let add = move |context: &mut HookContext<'_>| {
            assert_eq!(context.rip(), GuestAddress(CODE + offset));
            added.fetch_add(context.gpr(RAX), Ordering::SeqCst);
        };
        arena.machine.hook_code(here, add).unwrap();
        sum
    });
    let mut vcpu = arena.vcpu(0, CODE);
    vcpu.set_gpr(1, 100);
    assert_eq!(vcpu.run(None), Exit::Halt);
    let sums = calls.map(|sum| sum.load(Ordering::SeqCst));
    let expected: [u64; 2] = [(0..100).sum(), (1..=100).sum()];
    assert_eq!(sums, expected);
}

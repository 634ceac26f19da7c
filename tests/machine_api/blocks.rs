//! One block invalidated by its tag: it is made anew, its neighbours stay, and what jumps to it meets it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ebx, ecx, rdi};
use tregion::code::Figures;
use tregion::exec::{Exit, Machine, Vcpu};
use tregion::guest::{GuestAddress, Permissions};
use tregion::memory::Backing;

use crate::guest::{CODE, DATA, RAX, RBX, RCX, RDI, assemble, range};

/// Where the blocks begin: one that counts, and one with a constant.
const COUNTS: u64 = CODE + 5;
const CONSTANT: u64 = CODE + 0x100;
const AGAIN: u64 = CODE + 0x200;

/// A machine whose code lies in a backing, to which the host can write behind the machine's back.
struct Shown {
    machine: Machine,
    backing: Backing,
}

/// A loop of ECX turns, each of which takes a constant in EAX from a block of its own, stores it in
/// memory and adds it to EBX.
fn a_loop(a: &mut CodeAssembler) {
    a.mov(ecx, 0).unwrap();
    a.inc(ebx).unwrap();
    a.jmp(CONSTANT).unwrap();
    a.nops_with_size((CONSTANT - CODE) as usize - 12).unwrap();
    a.mov(eax, 0).unwrap();
    a.mov(dword_ptr(rdi), eax).unwrap();
    a.jmp(AGAIN).unwrap();
    let long = (AGAIN - CONSTANT) as usize - 12;
    a.nops_with_size(long).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(COUNTS).unwrap();
    a.hlt().unwrap();
}

fn shown() -> Shown {
    let machine = Machine::new(40).unwrap();
    let backing = Backing::new("code", 0x1000).unwrap();
    backing.write(0, &assemble(CODE, a_loop));
    let (at, permissions) = (range(CODE, 1), Permissions::ReadExecute);
    machine.map_shared(at, &backing, 0, permissions).unwrap();
    machine.map(range(DATA, 1), Permissions::ReadWrite).unwrap();
    let shown = Shown { machine, backing };
    shown.set(1);
    shown
}

impl Shown {
    /// Sets the constant, which the machine does not notice.
    fn set(&self, constant: u32) {
        self.backing.write(CONSTANT - CODE + 1, &constant.to_le_bytes());
    }

    fn vcpu(&self) -> Vcpu {
        let mut vcpu = self.machine.vcpu().unwrap();
        vcpu.set_gpr(RDI, DATA);
        vcpu
    }

    fn invalidate(&self, at: u64) -> bool {
        self.machine.invalidate_block(GuestAddress(at))
    }

    /// The constant that three turns have seen, each the same.
    fn seen(&self, vcpu: &mut Vcpu, budget: Option<u64>) -> u64 {
        vcpu.set_rip(GuestAddress(COUNTS));
        vcpu.set_gpr(RBX, 0);
        vcpu.set_gpr(RCX, 3);
        assert_eq!(vcpu.run(budget), Exit::Halt);
        assert_eq!(vcpu.gpr(RBX), 3, "each turn is made once");
        vcpu.gpr(RAX)
    }
}

#[test]
fn a_block_alone_is_translated_anew() {
    let shown = shown();
    let mut vcpu = shown.vcpu();
    assert!(!shown.invalidate(CONSTANT), "there is no block yet");
    assert_eq!(shown.seen(&mut vcpu, None), 1);
    shown.set(2);
    assert_eq!(shown.seen(&mut vcpu, None), 1, "the machine cannot know");
    assert!(!shown.invalidate(CONSTANT + 5), "no block starts there");
    let before = shown.machine.figures();
    assert!(shown.invalidate(CONSTANT));
    assert!(!shown.invalidate(CONSTANT), "it is gone");
    assert_eq!(shown.seen(&mut vcpu, None), 2);
    let after = shown.machine.figures();
    let grown = |figure: fn(&Figures) -> u64| figure(&after) - figure(&before);
    assert_eq!(grown(|figures| figures.blocks_invalidated), 1);
    assert_eq!(grown(|figures| figures.translations), 1, "its neighbours stay");
    assert_eq!(grown(|figures| figures.regions_retired), 0);
}

#[test]
fn a_block_whose_bytes_are_the_same_comes_back() {
    let shown = shown();
    let mut vcpu = shown.vcpu();
    for turn in 0..10 {
        shown.set(1 + turn % 2);
        shown.invalidate(CONSTANT);
        assert_eq!(shown.seen(&mut vcpu, None), u64::from(1 + turn % 2));
        assert!(shown.invalidate(CONSTANT));
        assert_eq!(shown.seen(&mut vcpu, None), u64::from(1 + turn % 2));
    }
    let figures = shown.machine.figures();
    assert_eq!((figures.translations, figures.blocks_revived), (5, 18), "{figures:?}");
    assert_eq!(figures.blocks_invalidated, 19);
}

#[test]
fn with_and_without_a_budget() {
    let shown = shown();
    let mut vcpu = shown.vcpu();
    for constant in 1..5 {
        shown.set(constant);
        shown.invalidate(CONSTANT);
        let executed = vcpu.executed();
        assert_eq!(shown.seen(&mut vcpu, Some(1000)), u64::from(constant));
        assert_eq!(vcpu.executed() - executed, 22, "the block that was left is not counted");
        assert_eq!(shown.seen(&mut vcpu, None), u64::from(constant));
    }
    assert_eq!(shown.machine.figures().blocks_invalidated, 6);
}

#[test]
fn a_block_that_a_budget_ends_before() {
    let shown = shown();
    let mut vcpu = shown.vcpu();
    assert_eq!(shown.seen(&mut vcpu, Some(1000)), 1);
    for budget in 1..21 {
        vcpu.set_rip(GuestAddress(COUNTS));
        vcpu.set_gpr(RBX, 0);
        vcpu.set_gpr(RCX, 3);
        shown.invalidate(CONSTANT);
        shown.invalidate(AGAIN);
        assert_eq!(vcpu.run(Some(budget)), Exit::Budget);
        let steps = [COUNTS, COUNTS + 2, CONSTANT, CONSTANT + 5, CONSTANT + 7, AGAIN, AGAIN + 2];
        assert_eq!(vcpu.rip().0, steps[budget as usize % 7], "after {budget} instructions");
    }
}

/// Sets the constant again and again while another vCPU runs through its block; `changed` is called
/// with each.
fn while_another_runs(mut changed: impl FnMut(&Shown, u32)) {
    let shown = shown();
    let mut vcpu = shown.vcpu();
    let (kick, over) = (vcpu.kick(), AtomicBool::new(false));
    vcpu.set_gpr(RCX, 0);
    vcpu.set_rip(GuestAddress(COUNTS));
    std::thread::scope(|scope| {
        let over = &over;
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                match vcpu.run(None) {
                    Exit::Halt => vcpu.set_rip(GuestAddress(COUNTS)),
                    exit => assert_eq!(exit, Exit::Requested),
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for constant in 2..100 {
                shown.set(constant);
                changed(&shown, constant);
            }
        }));
        over.store(true, Ordering::SeqCst);
        kick.ask();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

/// What the guest stored last.
fn stored(shown: &Shown) -> u32 {
    let mut bytes = [0; 4];
    shown.machine.read(GuestAddress(DATA), &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// Waits until the guest stores something else than nothing.
fn next_stored(shown: &Shown) -> u32 {
    shown.machine.write(GuestAddress(DATA), &[0; 4]).unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    while stored(shown) == 0 && Instant::now() < patience {
        std::thread::yield_now();
    }
    stored(shown)
}

#[test]
fn nobody_runs_the_old_block_when_the_call_returns() {
    while_another_runs(|shown, constant| {
        shown.invalidate(CONSTANT);
        assert_eq!(next_stored(shown), constant);
    });
}

#[test]
fn soon_is_at_the_next_jump() {
    while_another_runs(|shown, constant| {
        shown.machine.invalidate_block_soon(GuestAddress(CONSTANT));
        // One turn may be under way.
        let first = next_stored(shown);
        let next = if first == constant { first } else { next_stored(shown) };
        assert!(next == constant, "{next} and not {constant}");
    });
}

#[test]
fn a_call_that_waits_waits_for_one_that_did_not() {
    while_another_runs(|shown, constant| {
        shown.machine.invalidate_block_soon(GuestAddress(CONSTANT));
        shown.invalidate(CONSTANT);
        assert_eq!(next_stored(shown), constant);
    });
}

//! What the host attaches to code while vCPUs run it: breakpoints, hooks, devices. From the moment that
//! a call returns, each vCPU obeys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{qword_ptr, r12, r13, r15, rax};
use tregion::exec::{Exit, Kick, Mmio};
use tregion::guest::GuestAddress;

use crate::guest::{Arena, CODE, PATIENCE, R15, WORDS, alone, join, range, time};

/// An instruction that all pass, which counts them, and the counter.
const GATE: u64 = CODE + 0x1000;
const PASSED: u64 = WORDS + 0x80;
const STOP: u64 = WORDS;
const DEVICE: u64 = 0x80_0000;

/// Where a passer counts.
fn own(number: usize) -> u64 {
    WORDS + 0x1000 + number as u64 * 0x40
}

/// Two vCPUs that pass the gate over and over. At a breakpoint they wait until they may go on.
struct Passers {
    arena: Arena,
    threads: Vec<JoinHandle<()>>,
    kicks: Vec<Kick>,
    /// Breakpoints hold them.
    held: Arc<AtomicBool>,
}

impl Passers {
    fn start(arena: &Arena) -> Self {
        arena.code(GATE, |a| {
            a.lock().inc(qword_ptr(r12)).unwrap();
            a.ret().unwrap();
        });
        arena.code(CODE, |a| {
            let mut again = a.create_label();
            a.mov(r12, PASSED).unwrap();
            a.mov(r13, STOP).unwrap();
            a.set_label(&mut again).unwrap();
            a.call(GATE).unwrap();
            a.inc(qword_ptr(r15)).unwrap();
            a.cmp(qword_ptr(r13), 0).unwrap();
            a.je(again).unwrap();
            a.syscall().unwrap();
        });
        let held = Arc::new(AtomicBool::new(false));
        let mut kicks = Vec::new();
        let threads = (0..2)
            .map(|number| {
                let mut vcpu = arena.vcpu(number, CODE);
                vcpu.set_gpr(R15, own(number));
                kicks.push(vcpu.kick());
                let held = Arc::clone(&held);
                std::thread::spawn(move || {
                    loop {
                        match vcpu.run(None) {
                            Exit::SystemCall => return,
                            Exit::Requested => {}
                            Exit::Breakpoint => {
                                assert_eq!(vcpu.rip(), GuestAddress(GATE));
                                while held.load(Ordering::SeqCst) {
                                    std::thread::yield_now();
                                }
                            }
                            exit => panic!("{exit} at {}", vcpu.rip()),
                        }
                    }
                })
            })
            .collect();
        Self { arena: arena.clone(), threads, kicks, held }
    }

    fn are_well(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    fn passed(&self) -> u64 {
        self.arena.word(PASSED)
    }

    /// Waits until each has passed since: none is stopped, or about to pass a breakpoint because it has
    /// stopped there before.
    fn wait_for_more(&self) {
        let each = || [0, 1].map(|number| self.arena.word(own(number)));
        let (before, begun) = (each(), Instant::now());
        while each().iter().zip(before).any(|(now, before)| *now < before + 3) {
            assert!(begun.elapsed() < PATIENCE && self.are_well(), "nobody passes any more");
            std::thread::yield_now();
        }
    }

    fn stop(self) {
        self.held.store(false, Ordering::SeqCst);
        self.arena.storer().store(STOP, 1);
        self.threads.into_iter().for_each(|thread| join("a passer", thread));
        let sum: u64 = [0, 1].iter().map(|number| self.arena.word(own(*number))).sum();
        assert_eq!(self.arena.word(PASSED), sum, "LOCKed increments got lost");
        self.arena.check_emptied();
    }
}

#[test]
fn nobody_passes_a_breakpoint() {
    let _alone = alone();
    let arena = Arena::new();
    let passers = Passers::start(&arena);
    let until = Instant::now() + time(0.5);
    let mut rounds = 0;
    while Instant::now() < until && passers.are_well() {
        passers.wait_for_more();
        passers.held.store(true, Ordering::SeqCst);
        arena.machine.set_breakpoint(GuestAddress(GATE));
        let before = passers.passed();
        std::thread::sleep(Duration::from_micros(rounds % 4 * 50));
        assert_eq!(passers.passed(), before, "round {rounds}: passed a breakpoint");
        assert!(arena.machine.clear_breakpoint(GuestAddress(GATE)));
        passers.held.store(false, Ordering::SeqCst);
        rounds += 1;
    }
    println!("{rounds} breakpoints");
    passers.stop();
}

/// Every passing calls the hook from the time that it is there, and none does when it is gone.
#[test]
fn hooks_see_all_from_the_first_to_the_last() {
    let _alone = alone();
    let arena = Arena::new();
    let passers = Passers::start(&arena);
    let until = Instant::now() + time(0.5);
    let mut rounds = 0;
    while Instant::now() < until && passers.are_well() {
        passers.wait_for_more();
        let calls = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&calls);
        let here = GuestAddress(GATE)..=GuestAddress(GATE);
        let count = move |_: &mut tregion::exec::HookContext<'_>| {
            counts.fetch_add(1, Ordering::SeqCst);
        };
        let machine = &arena.machine;
        let id = match rounds % 2 {
            0 => machine.hook_code(here, count),
            _ => machine.hook_blocks(here, count),
        };
        let before = passers.passed();
        std::thread::sleep(Duration::from_micros(rounds % 4 * 50));
        let passed = passers.passed() - before;
        assert!(machine.remove_hook(id.unwrap()));
        let called = calls.load(Ordering::SeqCst);
        assert!(called >= passed, "round {rounds}: {passed} passed, {called} called");
        // A call that had begun may have gone on; it has ended where its vCPU has passed.
        passers.wait_for_more();
        let called = calls.load(Ordering::SeqCst);
        passers.wait_for_more();
        assert_eq!(calls.load(Ordering::SeqCst), called, "round {rounds}: called when gone");
        rounds += 1;
    }
    println!("{rounds} hooks");
    passers.stop();
}

/// Kicks of both vCPUs from several threads, with rules that change; none may keep the rest from it.
#[test]
fn kicks_among_rules() {
    let _alone = alone();
    let arena = Arena::new();
    let passers = Passers::start(&arena);
    let until = Instant::now() + time(0.3);
    let kickers: Vec<_> = passers
        .kicks
        .iter()
        .map(|kick| {
            let kick = kick.clone();
            std::thread::spawn(move || {
                while Instant::now() < until {
                    kick.ask();
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    while Instant::now() < until && passers.are_well() {
        arena.machine.set_breakpoint(GuestAddress(GATE + 0x100));
        arena.machine.clear_breakpoint(GuestAddress(GATE + 0x100));
        let id = arena.machine.hook_code(GuestAddress(CODE)..=GuestAddress(CODE), |_| {}).unwrap();
        arena.machine.remove_hook(id);
    }
    kickers.into_iter().for_each(|kicker| join("a kicker", kicker));
    passers.wait_for_more();
    passers.stop();
}

/// A device that comes and goes: a vCPU finds it, whole, or a page fault.
#[test]
fn devices_that_come_and_go() {
    let _alone = alone();
    let arena = Arena::new();
    arena.code(CODE, |a| {
        a.mov(rax, qword_ptr(r12)).unwrap();
        a.hlt().unwrap();
    });
    let over = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|number| {
            let mut vcpu = arena.vcpu(number, CODE);
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let (mut read, mut faults) = (0_u64, 0_u64);
                while !over.load(Ordering::SeqCst) {
                    vcpu.set_rip(GuestAddress(CODE));
                    vcpu.set_gpr(12, DEVICE + 8 * number as u64);
                    match vcpu.run(None) {
                        Exit::Halt => {
                            assert_eq!(vcpu.gpr(0), 0x1122_3344_5566_7788, "not the device's");
                            read += 1;
                        }
                        Exit::Exception { vector: 14, address, .. } => {
                            assert_eq!(address.map(|address| address & !0xfff), Some(DEVICE));
                            faults += 1;
                        }
                        exit => panic!("{exit}"),
                    }
                }
                (read, faults)
            })
        })
        .collect();
    let until = Instant::now() + time(0.5);
    while Instant::now() < until && threads.iter().all(|thread| !thread.is_finished()) {
        let device = |access: Mmio<'_>| {
            if let Mmio::Read { value, .. } = access {
                value.copy_from_slice(&0x1122_3344_5566_7788_u64.to_le_bytes());
            }
        };
        arena.machine.map_mmio(range(DEVICE, 1), device).unwrap();
        std::thread::yield_now();
        arena.machine.unmap(range(DEVICE, 1)).unwrap();
    }
    over.store(true, Ordering::SeqCst);
    let met: Vec<_> = threads.into_iter().map(|thread| join("a reader", thread)).collect();
    println!("devices: reads and faults {met:?}");
    assert!(met.iter().any(|met| met.0 > 0) && met.iter().any(|met| met.1 > 0));
    arena.check_emptied();
}

/// vCPUs come, run a little, and go, while others run and code is dropped.
#[test]
fn vcpus_that_come_and_go() {
    let _alone = alone();
    let arena = Arena::new();
    let passers = Passers::start(&arena);
    let until = Instant::now() + time(0.4);
    let comers: Vec<_> = (0..2)
        .map(|number| {
            let arena = arena.clone();
            std::thread::spawn(move || {
                let mut rounds = 0;
                while Instant::now() < until {
                    let mut vcpu = arena.vcpu(4 + number, CODE);
                    vcpu.set_gpr(R15, own(8));
                    let kick = vcpu.kick();
                    kick.ask();
                    assert_eq!(vcpu.run(Some(1000)), Exit::Requested);
                    assert_eq!(vcpu.run(Some(7)), Exit::Budget);
                    assert_eq!(vcpu.executed(), 7);
                    drop(vcpu);
                    kick.ask();
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    while Instant::now() < until && passers.are_well() {
        arena.machine.flush();
        std::thread::yield_now();
    }
    let came: u64 = comers.into_iter().map(|comer| join("a comer", comer)).sum();
    println!("{came} vCPUs came and went");
    // Each of them has passed once, which no passer has counted.
    assert!(passers.are_well() && came > 0);
    let Passers { arena, threads, .. } = passers;
    arena.storer().store(STOP, 1);
    threads.into_iter().for_each(|thread| join("a passer", thread));
    let sum: u64 = [0, 1].iter().map(|number| arena.word(own(*number))).sum();
    assert_eq!(arena.word(PASSED), sum + came, "LOCKed increments got lost");
    arena.check_emptied();
}

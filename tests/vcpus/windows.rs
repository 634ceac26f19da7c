//! The check that no vCPU runs stale code, whatever changed it.
//!
//! A *slot* is some code of one page that returns a number in RAX, with two words: `epoch` is even
//! while nothing changes and odd while something does, `current` is the number that the code has to
//! return, 0 where the call has to fault. A [`Changer`] owns a slot: it makes the epoch odd, changes the
//! code by whatever means, and makes the epoch even only when the change is complete, all by stores of
//! a vCPU. A *runner* reads both words, calls the code, reads the epoch again: if that was even and is
//! the same, the call lay between two changes, and the number has to be right. Loads and stores of x86
//! are ordered, so there is nothing else to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use iced_x86::code_asm::{
    CodeAssembler, eax, qword_ptr, r8, r8d, r9, r10, r11, r12, r13, r14, r15, rax,
};
use tregion::exec::{Exit, Kick, Vcpu};
use tregion::guest::GuestAddress;

use crate::guest::{
    Arena, CODE, PATIENCE, R8, R9, R15, RAX, RSP, Storer, WORDS, assemble, join, stack,
};

pub(crate) const STOP: u64 = WORDS;
/// Counts the rounds of all runners.
pub(crate) const SHARED: u64 = WORDS + 0x40;
/// Counts the rounds of each runner.
const OWN: u64 = WORDS + 0x1000;
/// Counts the calls of each runner that lay between two changes.
const STABLE: u64 = WORDS + 0x2000;
/// The two words of each slot.
const SLOTS: u64 = WORDS + 0x3000;

/// Code whose number can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: u64,
    pub(crate) page: u64,
}

impl Slot {
    pub(crate) fn epoch(self) -> u64 {
        SLOTS + self.number * 0x80
    }

    fn current(self) -> u64 {
        SLOTS + self.number * 0x80 + 0x40
    }
}

/// Code that returns `number`. How long it is and of how many blocks depends on the number.
pub(crate) fn versioned(at: u64, number: u64) -> Vec<u8> {
    assemble(at, |a| {
        let mut end = a.create_label();
        match number % 4 {
            0 => a.mov(eax, number as u32).unwrap(),
            1 => {
                a.mov(eax, number as u32).unwrap();
                a.jmp(end).unwrap();
                a.ud2().unwrap();
            }
            2 => {
                a.mov(eax, number as u32 - 1).unwrap();
                a.test(eax, eax).unwrap();
                a.js(end).unwrap();
                a.inc(eax).unwrap();
            }
            _ => {
                a.nops_with_size(40).unwrap();
                a.mov(eax, number as u32).unwrap();
            }
        }
        a.set_label(&mut end).unwrap();
        a.ret().unwrap();
    })
}

/// The only one that changes a slot.
pub(crate) struct Changer {
    pub(crate) arena: Arena,
    pub(crate) slot: Slot,
    pub(crate) storer: Storer,
    epoch: u64,
    next: u64,
}

impl Changer {
    pub(crate) fn new(arena: &Arena, slot: Slot) -> Self {
        Self { arena: arena.clone(), slot, storer: arena.storer(), epoch: 0, next: 1 }
    }

    /// A number that no code has returned yet.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Changes the slot; `change` gives the number that its code returns when it is done, or 0.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Self) -> u64) {
        self.storer.store(self.slot.epoch(), self.epoch + 1);
        let current = change(self);
        self.storer.store(self.slot.current(), current);
        self.epoch += 2;
        self.storer.store(self.slot.epoch(), self.epoch);
    }

    /// Writes code with a new number, by the host.
    pub(crate) fn write(&mut self, at: u64) -> u64 {
        let number = self.number();
        self.arena.machine.write(GuestAddress(at), &versioned(self.slot.page, number)).unwrap();
        number
    }
}

/// The checking loop: calls each slot directly and indirectly. R15 is the runner's number times 8.
fn program(a: &mut CodeAssembler, slots: &[Slot]) {
    let (mut again, mut stop, mut stale) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut again).unwrap();
    for slot in slots {
        for direct in [true, false] {
            let mut changed = a.create_label();
            a.mov(r12, slot.epoch()).unwrap();
            a.mov(r8, qword_ptr(r12)).unwrap();
            a.mov(r9, qword_ptr(r12 + 0x40)).unwrap();
            if direct {
                a.call(slot.page).unwrap();
            } else {
                a.mov(r11, slot.page).unwrap();
                a.call(r11).unwrap();
            }
            a.mov(r10, qword_ptr(r12)).unwrap();
            a.cmp(r8, r10).unwrap();
            a.jne(changed).unwrap();
            a.test(r8d, 1).unwrap();
            a.jnz(changed).unwrap();
            a.cmp(rax, r9).unwrap();
            a.jne(stale).unwrap();
            a.mov(r13, STABLE).unwrap();
            a.inc(qword_ptr(r13 + r15)).unwrap();
            a.set_label(&mut changed).unwrap();
        }
    }
    a.mov(r14, SHARED).unwrap();
    a.lock().inc(qword_ptr(r14)).unwrap();
    a.mov(r13, OWN).unwrap();
    a.inc(qword_ptr(r13 + r15)).unwrap();
    a.mov(r14, STOP).unwrap();
    a.cmp(qword_ptr(r14), 0).unwrap();
    a.jne(stop).unwrap();
    a.jmp(again).unwrap();
    a.set_label(&mut stop).unwrap();
    a.syscall().unwrap();
    a.set_label(&mut stale).unwrap();
    a.hlt().unwrap();
}

/// What a runner has met.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Met {
    pub(crate) faults: u64,
    pub(crate) breakpoints: u64,
}

struct Runner {
    vcpu: Vcpu,
    number: usize,
    arena: Arena,
    slots: Vec<Slot>,
    /// Requests to leave that were granted.
    granted: Arc<AtomicU64>,
}

impl Runner {
    fn run(mut self) -> Met {
        let mut met = Met::default();
        loop {
            match self.vcpu.run(None) {
                Exit::SystemCall => return met,
                Exit::Requested => {
                    self.granted.fetch_add(1, Ordering::SeqCst);
                }
                Exit::Breakpoint => met.breakpoints += 1,
                Exit::Exception { vector, address, .. } => {
                    self.excuse(vector, address);
                    met.faults += 1;
                    self.vcpu.set_rip(GuestAddress(CODE));
                    self.vcpu.set_gpr(RSP, stack(self.number));
                }
                Exit::Halt => panic!(
                    "stale: {} returned, {} expected in epoch {}",
                    self.vcpu.gpr(RAX),
                    self.vcpu.gpr(R9),
                    self.vcpu.gpr(R8)
                ),
                exit => panic!("{exit} at {}", self.vcpu.rip()),
            }
        }
    }

    /// An exception is in order where the code is away, and while it changes.
    fn excuse(&self, vector: u8, address: Option<u64>) {
        let (epoch, current) = (self.vcpu.gpr(R8), self.vcpu.gpr(R9));
        let at = self.vcpu.gpr(12);
        let slot = self.slots.iter().find(|slot| slot.epoch() == at);
        let slot = slot.unwrap_or_else(|| panic!("an exception at {}", self.vcpu.rip()));
        let now = self.arena.word(slot.epoch());
        let away = vector == 14
            && current == 0
            && address.is_some_and(|address| address & !0xfff == slot.page);
        assert!(
            away || epoch % 2 == 1 || now != epoch,
            "exception {vector} at {}, {address:x?}, in epoch {epoch} of version {current}",
            self.vcpu.rip()
        );
    }
}

/// Runners of all slots, and one that kicks them.
pub(crate) struct Runners {
    arena: Arena,
    threads: Vec<JoinHandle<Met>>,
    kicker: JoinHandle<u64>,
    over: Arc<AtomicBool>,
}

impl Runners {
    /// Starts `count` runners. The slots' pages must have code.
    pub(crate) fn start(arena: &Arena, slots: &[Slot], count: usize) -> Self {
        arena.code(CODE, |a| program(a, slots));
        let mut kicks = Vec::new();
        let threads = (0..count)
            .map(|number| {
                let mut vcpu = arena.vcpu(number, CODE);
                vcpu.set_gpr(R15, number as u64 * 8);
                let granted = Arc::new(AtomicU64::new(0));
                kicks.push((vcpu.kick(), Arc::clone(&granted)));
                let (arena, slots) = (arena.clone(), slots.to_vec());
                let runner = Runner { vcpu, number, arena, slots, granted };
                std::thread::spawn(move || runner.run())
            })
            .collect();
        let over = Arc::new(AtomicBool::new(false));
        let (arena, ends) = (arena.clone(), Arc::clone(&over));
        let kicker = std::thread::spawn(move || kick_until(&ends, &kicks));
        Self { arena, threads, kicker, over }
    }

    /// Whether all still run.
    pub(crate) fn are_well(&self) -> bool {
        !self.kicker.is_finished() && self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Stops all; what they have met, and the calls that lay between two changes.
    pub(crate) fn stop(mut self, name: &str) -> (Met, u64) {
        // First what came first: nobody grants the kicks of a runner that has panicked.
        if let Some(dead) = self.threads.iter().position(JoinHandle::is_finished) {
            join("a runner", self.threads.swap_remove(dead));
            panic!("{name}: a runner has ended by itself");
        }
        self.over.store(true, Ordering::SeqCst);
        let kicks = join("the kicker", self.kicker);
        self.arena.storer().store(STOP, 1);
        let count = self.threads.len() as u64;
        let mut all = Met::default();
        for thread in self.threads {
            let met = join("a runner", thread);
            all.faults += met.faults;
            all.breakpoints += met.breakpoints;
        }
        let sum = |words: u64| (0..count).map(|number| self.arena.word(words + number * 8)).sum();
        let (rounds, own, stable): (u64, u64, u64) =
            (self.arena.word(SHARED), sum(OWN), sum(STABLE));
        println!("{name}: {rounds} rounds, {stable} calls checked, {kicks} kicks, {all:?}");
        assert_eq!(rounds, own, "{name}: LOCKed increments got lost");
        assert!(stable > 0, "{name}: nothing was checked");
        self.arena.check_emptied();
        (all, stable)
    }
}

/// Asks one vCPU after the other to leave, and waits until it has left: once for each request.
fn kick_until(over: &AtomicBool, kicks: &[(Kick, Arc<AtomicU64>)]) -> u64 {
    let mut asked = 0;
    while !over.load(Ordering::SeqCst) {
        for (kick, granted) in kicks {
            let before = granted.load(Ordering::SeqCst);
            kick.ask();
            asked += 1;
            let until = Instant::now() + PATIENCE / 2;
            while granted.load(Ordering::SeqCst) == before {
                assert!(Instant::now() < until, "a kick was lost");
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_micros(300));
            let granted = granted.load(Ordering::SeqCst) - before;
            assert_eq!(granted, 1, "one request ends one run");
        }
    }
    asked
}

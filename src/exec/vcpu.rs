//! [`Vcpu`]: one processor's registers, and the run loop.
//!
//! ```text
//! loop
//!   quiet the bell; act on a request to leave; stop at a breakpoint, or when the budget is used up
//!   if code was invalidated or hooks have changed: empty the jump cache, look at the hooks
//!   if only one instruction may run: step, under the machine's lock (see `step`)
//!   else pin the epoch, find or translate the block at RIP and enter it, without the lock
//!   interpret how the code cache was left: chain, resolve an indirect jump, a fault, … (see `leave`)
//! ```
//!
//! The epoch stays pinned until the way out is interpreted, since what is known of a block goes with
//! it; it is not while hooks are called or a vCPU waits for room.

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::io;
use std::sync::LazyLock;

use super::announce::{Met, Place};
use super::core::Found;
use super::exit::{Exit, vector};
use super::hooks::HookSet;
use super::kick::Kick;
use super::shared::{Locked, Running, Shared};
use super::trace::FalseArrival;
use super::vcpu_memory::{HostBase, PollCell, VcpuMemory};
use crate::code::gate::{Bell, Gate};
use crate::code::sync::{Arc, yield_now};
use crate::code::{Key, Participant, Pinned};
use crate::guest::{GuestAddress, PKRU_DEFAULT, Selectors, State, Xstate};
use crate::translate::{Purpose, Stub};

/// Budgets below this are stepped: they may end inside of any block.
const STEPPED: u64 = 8;

/// Entries of blocks that check themselves after which the vCPU looks whether they still have to.
pub(super) const ENTRIES_UNTIL_A_LOOK: i64 = 1 << 20;

/// One processor of a machine. It may move between threads; guest code runs in the thread that
/// calls [`Vcpu::run`].
#[derive(Debug)]
pub struct Vcpu {
    shared: Arc<Shared>,
    pub(super) memory: VcpuMemory,
    xstate: Xstate,
    pub(super) gate: Arc<Gate<PollCell>>,
    /// This vCPU in the epoch, but while it runs; there is none after a panic.
    participant: Option<Participant>,
    pub(super) pc: GuestAddress,
    /// TF of the guest, which the host's RFLAGS never has.
    pub(super) trap: bool,
    /// The instruction just stepped puts the trap of TF off to the next one.
    pub(super) shadow: bool,
    pub(super) selectors: Selectors,
    pub(super) pkru: u32,
    /// Entries of the jump cache that are in use, …
    pub(super) filled: Vec<u16>,
    /// … how many were emptied since its memory was given back, …
    pub(super) emptied: usize,
    /// … whether they lead to blocks that count their instructions, …
    counted: bool,
    /// … and how often code was invalidated when they were known to be right, …
    pub(super) generation: u64,
    /// … and it was known whether there are breakpoints or hooks on code.
    pub(super) on_code: bool,
    /// Instructions executed since the vCPU was made, as far as they were counted.
    executed: u64,
    pub(super) bytes: Vec<u8>,
    /// The address behind the instruction that was stepped last, unless that transfers control.
    pub(super) falls_to: Option<GuestAddress>,
    /// How control came to `pc`; kept up to date where there are code or block hooks.
    pub(super) place: Place,
    /// The hooks that there were then; nothing while those on code are called, and after a panic of one.
    pub(super) hooks: Option<Arc<HookSet>>,
    /// Host address of the block by which the code cache was last entered.
    pub(super) first: u64,
    /// The x87 unit notes addresses of operands only of instructions with an unmasked exception.
    pub(super) notes_exceptions_only: bool,
    /// The last access that faulted although it was allowed: instruction and address.
    pub(super) retried: Option<(GuestAddress, GuestAddress)>,
    pub(super) false_arrival: FalseArrival,
    /// A memory hook has asked for the run to end behind the instruction.
    pub(super) stop_asked: Cell<bool>,
    /// It leaves at the first poll behind every other entry, this one or the next.
    restless: Option<bool>,
}

/// What is to be done after the code cache was left.
pub(super) enum Handled {
    /// It is entered again, at `block.entry`.
    Enter(Way),
    End(End),
}

/// A way into the code cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Another block begins; RIP is its address.
    Start,
    /// The block that was left goes on behind the call, with the instruction in hand …
    Resume,
    /// … or behind it: that is done, and RIP is the address behind it.
    Behind,
}

/// How a piece of a run ended.
pub(super) enum End {
    /// The guest goes on at `pc`.
    Go,
    /// The instruction at `pc` is to be stepped.
    Step,
    Exit(Exit),
}

/// A fault of translated code, with the guest's registers in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) purpose: Purpose,
    pub(super) vector: u8,
    pub(super) error: u32,
    /// CR2.
    pub(super) address: u64,
}

impl Vcpu {
    pub(super) fn new(shared: Arc<Shared>, window: u64) -> io::Result<Self> {
        let xstate = Xstate::of_this_host();
        let mut memory = VcpuMemory::new()?;
        let block = memory.block_mut();
        block.window = window;
        block.minus_window = window.wrapping_neg();
        block.calm = ENTRIES_UNTIL_A_LOOK;
        block.components = xstate.components() & !Xstate::PKRU_COMPONENT;
        memory.poll_cell().set_quiet();
        let gate = shared.gates.add(memory.poll_cell());
        let participant = Some(shared.epoch.participant());
        let mut vcpu = Self {
            shared,
            memory,
            xstate,
            gate,
            participant,
            pc: GuestAddress(0),
            trap: false,
            shadow: false,
            selectors: Selectors::default(),
            pkru: PKRU_DEFAULT,
            filled: Vec::new(),
            emptied: 0,
            counted: false,
            generation: u64::MAX,
            on_code: true,
            executed: 0,
            bytes: Vec::new(),
            falls_to: None,
            place: Place::default(),
            hooks: None,
            first: 0,
            notes_exceptions_only: notes_exceptions_only(),
            retried: None,
            false_arrival: FalseArrival::default(),
            stop_asked: Cell::new(false),
            restless: None,
        };
        vcpu.reset_jump_cache();
        vcpu.set_state(&State::default());
        Ok(vcpu)
    }

    pub(super) fn xstate(&self) -> &Xstate {
        &self.xstate
    }

    /// Something that makes this vCPU leave guest code, from any thread.
    #[must_use]
    pub fn kick(&self) -> Kick {
        Kick(Arc::clone(&self.gate))
    }

    /// Has translated code leave at each poll that it comes to, or no more, which changes nothing but the speed: for
    /// who tests that.
    pub(crate) fn set_restless(&mut self, restless: bool) {
        self.restless = restless.then_some(false);
    }

    /// Instructions executed by runs with a budget.
    #[must_use]
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// Runs guest code until it exits, at most `budget` instructions if one is given. A repeated
    /// string instruction counts once, when it is done. A breakpoint at the first instruction is
    /// passed.
    pub fn run(&mut self, budget: Option<u64>) -> Exit {
        let shared = Arc::clone(&self.shared);
        let participant = self.participant.take();
        let mut participant = participant.unwrap_or_else(|| shared.epoch.participant());
        let base = HostBase::note(&mut self.memory);
        let exit = self.run_as(&shared, &mut participant, budget);
        drop(base);
        self.participant = Some(participant);
        if self.on_code {
            self.deliver();
        }
        exit
    }

    fn run_as(
        &mut self,
        shared: &Shared,
        participant: &mut Participant,
        budget: Option<u64>,
    ) -> Exit {
        let mut running = Running::new(shared);
        if self.counted != budget.is_some() {
            self.reset_jump_cache();
            self.counted = budget.is_some();
        }
        let mut left = budget;
        let mut passing = Some(self.pc);
        let mut step = false;
        let mut left_for_step = false;
        loop {
            // An instruction that code was left for is stepped under the lock that this took. No other
            // is: a string instruction takes many steps.
            if !std::mem::take(&mut left_for_step) {
                running.release();
            }
            if self.gate.settle() {
                return Exit::Requested;
            }
            if left == Some(0) {
                return Exit::Budget;
            }
            if let Err(error) = self.catch_up(&mut running) {
                return Exit::Host { what: error.to_string() };
            }
            if self.on_code {
                if self.memory.records_are_full() {
                    running.release();
                    self.deliver();
                }
                match self.meet(shared, &mut running, passing) {
                    Met::Exit(exit) => return exit,
                    Met::Moved => {
                        step = false;
                        continue;
                    }
                    Met::Stop => step = true,
                    Met::Nothing => {}
                }
            }
            let single = step || self.trap || left.is_some_and(|left| left < STEPPED);
            let end = if single {
                let core = running.core();
                if shared.gates.generation() != self.generation {
                    // Now that nothing changes any more: a breakpoint may have come.
                    continue;
                }
                self.step_counted(core, &mut left)
            } else {
                self.run_blocks(shared, participant, &mut running, &mut left)
            };
            step = match end {
                End::Go => false,
                End::Step => true,
                End::Exit(exit) => return exit,
            };
            left_for_step = step && !single;
            if !step {
                passing = None;
            }
            if single && self.stop_asked.take() {
                return Exit::Stopped;
            }
        }
    }

    /// Notices that code was invalidated or that hooks have changed.
    fn catch_up(&mut self, running: &mut Running<'_>) -> io::Result<()> {
        let generation = self.shared.gates.generation();
        if self.hooks.is_none() {
            self.hooks = Some(Arc::clone(running.core().hooks.set()));
        }
        if self.generation != generation {
            if !self.memory.records().is_empty() {
                running.release();
                self.deliver();
            }
            self.reset_jump_cache();
            let core = running.core();
            self.on_code = core.hooks.on_code;
            self.hooks = Some(Arc::clone(core.hooks.set()));
            self.memory.block_mut().need(core.extended);
            if self.recorded().is_some() {
                self.memory.open_records()?;
            }
            self.generation = generation;
        }
        if !self.on_code {
            self.place = Place::default();
        }
        Ok(())
    }

    fn step_counted(&mut self, core: &mut Locked<'_>, left: &mut Option<u64>) -> End {
        let (trap, pc) = (self.trap, self.pc);
        let traced = self.on_code && self.is_traced();
        let end = self.step(core);
        let done = match &end {
            Stepped::Done => true,
            Stepped::Again => false,
            Stepped::Exit(exit) => is_counted(exit),
        };
        if let Some(left) = left.as_mut().filter(|_| done) {
            *left -= 1;
            self.executed += 1;
        }
        if self.on_code && (done || self.pc != pc) {
            if traced {
                self.memory.push_record(pc.0);
            }
            self.note_step(pc);
        }
        match end {
            Stepped::Exit(exit) => {
                self.stop_asked.set(false);
                End::Exit(exit)
            }
            Stepped::Done | Stepped::Again if trap && !self.shadow => {
                End::Exit(Exit::exception(vector::DB))
            }
            Stepped::Done => End::Go,
            Stepped::Again => End::Step,
        }
    }

    /// Enters the block at `pc` and follows chained blocks until something is left to do.
    fn run_blocks(
        &mut self,
        shared: &Shared,
        participant: &mut Participant,
        running: &mut Running<'_>,
        left: &mut Option<u64>,
    ) -> End {
        let key = Key { pc: self.pc, counted: left.is_some() };
        let mut pinned = participant.pin();
        let found = shared.lookups.find(key, &pinned).map(Found::At);
        let host = match found.unwrap_or_else(|| running.core().find_or_translate(key)) {
            Found::At(host) => host,
            Found::Nothing => return End::Step,
            Found::NoRoom => {
                drop(pinned);
                running.release();
                participant.hurry();
                yield_now();
                return End::Go;
            }
        };
        let block = self.memory.block_mut();
        block.entry = host;
        block.budget = left.unwrap_or(0) as i64;
        self.first = host;
        let mut way = Way::Start;
        let end = loop {
            if self.on_code && way == Way::Start {
                self.expect_arrival();
            }
            if !self.enter(shared, running) {
                break match way {
                    Way::Resume => self.back_out(running.core(), key.counted),
                    Way::Behind => self.stay_behind(running.core(), key.counted),
                    Way::Start => End::Go,
                };
            }
            match self.handle(shared, &mut pinned, running, key.counted) {
                Handled::Enter(next) => way = next,
                Handled::End(end) => break end,
            }
        };
        if let Some(left) = left {
            let now = self.memory.block().budget as u64;
            self.executed += *left - now;
            *left = now;
        }
        end
    }

    /// Runs translated code from `block.entry` until it leaves, without the lock. Does nothing if code
    /// was invalidated that may be this; whether it did.
    fn enter(&mut self, shared: &Shared, running: &mut Running<'_>) -> bool {
        running.release();
        let current = self.gate.enter(&shared.gates) == self.generation;
        if current {
            if let Some(now) = &mut self.restless {
                // At the next entry it gets past the poll.
                *now = !*now;
                if *now {
                    self.gate.bell().ring();
                }
            }
            self.memory.enter(shared.door);
            if self.on_code {
                self.strike();
            }
        }
        self.gate.leave();
        if current && shared.door.leads_to(self.x87_instruction_pointer()) {
            self.fix_instruction_pointer(&running.core().cache);
        }
        current
    }

    /// Acts on how the code cache was left.
    fn handle(
        &mut self,
        shared: &Shared,
        pinned: &mut Pinned<'_>,
        running: &mut Running<'_>,
        counted: bool,
    ) -> Handled {
        let block = self.memory.block();
        match Stub::ALL[block.exit_kind as usize] {
            Stub::Fault => Handled::End(self.faulted(running.core())),
            Stub::Target => {
                self.pc = GuestAddress(block.target);
                self.drop_target(block.target);
                self.place.elsewhere();
                Handled::End(End::Go)
            }
            stub @ (Stub::Arrival | Stub::Instruction) => {
                self.announced(shared, pinned, running, counted, stub == Stub::Arrival)
            }
            Stub::Observed => self.observed(shared, pinned, running, counted),
            Stub::Halt if self.passes_at_once(counted) => Handled::End(End::Exit(Exit::Halt)),
            Stub::SystemCall if self.passes_at_once(counted) => {
                self.note_system_call();
                Handled::End(End::Exit(Exit::SystemCall))
            }
            Stub::Indirect if self.resolve_at_once(shared, pinned, counted) => {
                Handled::Enter(Way::Resume)
            }
            _ => self.left(running.core(), counted),
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.shared.gates.remove(&self.gate);
    }
}

/// How a single step ended.
pub(super) enum Stepped {
    /// The instruction is done.
    Done,
    /// It is not, and is to be stepped again: an iteration of it is done, or what was in its way is
    /// gone.
    Again,
    Exit(Exit),
}

/// Whether the instruction that ended so counts as executed.
fn is_counted(exit: &Exit) -> bool {
    matches!(exit, Exit::Halt | Exit::SystemCall | Exit::LegacySystemCall)
}

/// CPUID leaf 7, FDP_EXCPTN_ONLY (Intel SDM volume 1, section 8.1.8).
fn notes_exceptions_only() -> bool {
    static NOTES: LazyLock<bool> =
        LazyLock::new(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx >> 6 & 1 != 0);
    *NOTES
}

/// A state that cannot be: an error of this engine.
pub(super) fn lost(what: &str) -> Exit {
    Exit::Host { what: what.to_owned() }
}

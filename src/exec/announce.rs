//! Where hooks on code and on blocks are called: by the run loop before what it executes, and where translated
//! code *announces* what comes next, by a call of [`Stub::Arrival`] or [`Stub::Instruction`] before the
//! instruction. The block goes on behind that call, if nobody has changed anything but registers meanwhile.
//!
//! Nothing is told twice: what has been announced and not been executed yet is in [`Place`], which the next
//! announcement takes.
//!
//! [`Stub::Arrival`]: crate::translate::Stub::Arrival
//! [`Stub::Instruction`]: crate::translate::Stub::Instruction

use std::panic::{self, AssertUnwindSafe};

use super::core::Core;
use super::exit::Exit;
use super::hook_context::HookContext;
use super::hooks::Span;
use super::shared::{Running, Shared};
use super::trace::Noted;
use super::vcpu::{End, Handled, Vcpu, Way};
use crate::code::Pinned;
use crate::guest::GuestAddress;

/// What a vCPU knows of how it came to RIP.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// If RIP is this …
    at: GuestAddress,
    /// … control came there without a branch from the block or the instruction here, …
    from: Option<GuestAddress>,
    /// … hooks of the instruction there have been called, and it is not done yet, …
    announced: bool,
    /// … or hooks have been told of all that came before, how control came there included.
    settled: bool,
}

impl Place {
    /// Control came to `at` from the instruction before, in the block at `from`.
    pub(super) fn inside(&mut self, at: GuestAddress, from: GuestAddress) {
        *self = Self { at, from: Some(from), ..Self::default() };
    }

    /// Control came to RIP by a branch, or nobody knows how.
    pub(super) fn elsewhere(&mut self) {
        *self = Self::default();
    }

    /// The same, but hooks that have been called have been called.
    pub(super) fn arrived(&mut self) {
        self.from = None;
    }

    /// The instruction at `at` has been announced, and control there too.
    pub(super) fn tell(&mut self, at: GuestAddress) {
        self.forget_others(at);
        (self.at, self.announced) = (at, true);
    }

    /// From here on blocks tell hooks all that there is to tell.
    fn settle(&mut self) {
        (self.announced, self.settled) = (false, true);
    }

    /// Whether hooks of the instruction at `pc` have been called.
    pub(super) fn is_announced(self, pc: GuestAddress) -> bool {
        self.at == pc && self.announced
    }

    /// Whether hooks need not hear of control at `pc`: it came there from inside of a span without a branch, or
    /// has been announced.
    pub(super) fn continues(self, pc: GuestAddress, span: Span) -> bool {
        self.is_announced(pc) || !self.settled && self.comes_inside(pc, span)
    }

    /// Whether control came to `pc` from inside of a span without a branch.
    pub(super) fn comes_inside(self, pc: GuestAddress, span: Span) -> bool {
        self.at == pc && self.from.is_some_and(|from| span.contains(from))
    }

    /// Forgets what is not about RIP: the host may have moved it.
    fn forget_others(&mut self, pc: GuestAddress) {
        if self.at != pc {
            *self = Self::default();
        }
    }
}

/// What is to be done at RIP.
pub(super) enum Met {
    /// Whatever would be done.
    Nothing,
    /// The instruction is to be stepped.
    Stop,
    /// A hook moved RIP.
    Moved,
    Exit(Exit),
}

impl Vcpu {
    /// Looks for breakpoints and calls hooks at RIP, without the lock. The breakpoint at `passing` is
    /// passed.
    pub(super) fn meet(
        &mut self,
        shared: &Shared,
        running: &mut Running<'_>,
        passing: Option<GuestAddress>,
    ) -> Met {
        let pc = self.pc;
        self.place.forget_others(pc);
        let breakpoint = running.core().hooks.is_breakpoint(pc);
        if passing != Some(pc) && breakpoint {
            return Met::Exit(Exit::Breakpoint);
        }
        let place = self.place;
        let due = self.hooks.as_ref().is_some_and(|hooks| {
            hooks.of_arrival(pc, place).chain(hooks.of_instruction(pc, place)).next().is_some()
        });
        if due {
            running.release();
            if self.tell(shared, pc, true) {
                return Met::Exit(Exit::Stopped);
            }
        }
        if self.pc != pc {
            return Met::Moved;
        }
        if breakpoint { Met::Stop } else { Met::Nothing }
    }

    /// A block announces the instruction whose address is in the slot for targets: it goes on behind the
    /// call, or is left there.
    pub(super) fn announced(
        &mut self,
        shared: &Shared,
        pinned: &mut Pinned<'_>,
        running: &mut Running<'_>,
        counted: bool,
        arrival: bool,
    ) -> Handled {
        let pc = GuestAddress(self.memory.block().target);
        self.pc = pc;
        self.place.forget_others(pc);
        // The block may be gone afterwards.
        let wanted = counted || self.recorded().is_some();
        let (left, noted) = if wanted { self.undone(running.core()) } else { Default::default() };
        running.release();
        let told = AssertUnwindSafe(|| pinned.unpinned(|| self.tell(shared, pc, arrival)));
        let told = panic::catch_unwind(told);
        // A block that is current now stays until the epoch is not pinned any more (see `Limbo`).
        let current = shared.gates.generation() == self.generation && matches!(told, Ok(false));
        if current && self.pc == pc && !self.trap && !self.gate.is_requested() {
            self.place.settle();
            let block = self.memory.block_mut();
            block.entry = block.exit_address;
            return Handled::Enter(Way::Resume);
        }
        if counted {
            self.memory.block_mut().budget += i64::from(left);
        }
        self.take_back(noted);
        if self.pc != pc {
            self.place.elsewhere();
        }
        match told {
            Ok(stop) => Handled::End(if stop { End::Exit(Exit::Stopped) } else { End::Go }),
            Err(panic) => panic::resume_unwind(panic),
        }
    }

    /// How many of its instructions a block that was left by a call has not executed, and what it has noted of the
    /// first of them, which is at RIP.
    pub(super) fn undone(&mut self, core: &Core) -> (u16, Noted) {
        let Some(located) = core.cache.locate(self.memory.block().exit_address - 1) else {
            return Default::default();
        };
        let translated = located.translated();
        let done = translated.side_entry(located.offset).map_or(0, |entry| entry.index);
        if done > 0 {
            self.place.inside(self.pc, located.block.key.pc);
        }
        (translated.instructions - done, Noted::of(translated, located.offset))
    }

    /// Calls the hooks that are due at `pc`; whether one wants the run to end.
    fn tell(&mut self, shared: &Shared, pc: GuestAddress, arrival: bool) -> bool {
        let place = self.place;
        self.place.tell(pc);
        let Some(hooks) = self.hooks.take() else { return false };
        let mut context = HookContext { vcpu: self, shared, stop: false };
        if arrival {
            hooks.of_arrival(pc, place).for_each(|closure| closure.with(|call| call(&mut context)));
        }
        hooks.of_instruction(pc, place).for_each(|closure| closure.with(|call| call(&mut context)));
        let stop = context.stop;
        self.hooks = Some(hooks);
        stop
    }

    /// Notes how control came to RIP by the instruction at `before`, the last one that was stepped.
    pub(super) fn note_step(&mut self, before: GuestAddress) {
        if self.falls_to == Some(self.pc) {
            self.place.inside(self.pc, before);
        } else {
            self.place.elsewhere();
        }
    }
}

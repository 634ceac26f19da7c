//! [`Turns`]: runs a vCPU in short pieces, by turns with a budget and without one, in which a hook ends it. What a
//! vCPU has learnt in runs of one kind must do no harm in those of the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::exec::{Exit, HookError, Machine, Vcpu};
use crate::guest::GuestAddress;

/// Pieces have up to so many instructions.
const LONGEST: u64 = 61;

/// See the file's head.
pub(super) struct Turns {
    calls: Arc<Calls>,
    /// Pieces so far.
    pieces: u64,
    /// The hook was called for the instruction at RIP, which is not executed.
    told: bool,
}

/// Calls of the hook in a piece.
#[derive(Default)]
struct Calls {
    made: AtomicU64,
    /// The call behind so many ends it.
    most: AtomicU64,
}

impl Turns {
    /// Hooks the machine's code.
    pub(super) fn new(machine: &Machine) -> Result<Self, HookError> {
        let calls = Arc::<Calls>::default();
        let counting = Arc::clone(&calls);
        machine.hook_code(.., move |context| {
            let before = counting.made.fetch_add(1, Ordering::Relaxed);
            if before == counting.most.load(Ordering::Relaxed) {
                context.stop();
            }
        })?;
        Ok(Self { calls, pieces: 0, told: false })
    }

    /// Another case begins, whose run is cut into pieces by its own contents alone.
    pub(super) fn begin(&mut self) {
        *self = Self { calls: Arc::clone(&self.calls), pieces: 0, told: false };
    }

    /// Runs until something else than the end of a piece ends it, or at a breakpoint that is not where it begins. Gives
    /// what that was, and how many instructions were executed, which is exact unless it is an exception.
    pub(super) fn run(
        &mut self,
        vcpu: &mut Vcpu,
        budget: Option<u64>,
        breakpoint: Option<GuestAddress>,
    ) -> (Exit, u64) {
        let mut executed = 0;
        loop {
            let left = budget.map_or(u64::MAX, |budget| budget - executed);
            if left == 0 {
                return (Exit::Budget, executed);
            }
            self.pieces += 1;
            let piece = (1 + self.pieces * 7 % LONGEST).min(left);
            let free = self.pieces.is_multiple_of(2);
            let (exit, done) =
                if free { self.run_freely(vcpu, piece) } else { self.run_counted(vcpu, piece) };
            executed += done;
            match exit {
                // The next piece would pass it.
                Exit::Budget if done > 0 && breakpoint == Some(vcpu.rip()) => {
                    return (Exit::Breakpoint, executed);
                }
                Exit::Budget => {}
                Exit::Stopped if free => {}
                // Or it has overrun its budget.
                exit => return (exit, executed),
            }
        }
    }

    fn run_counted(&mut self, vcpu: &mut Vcpu, piece: u64) -> (Exit, u64) {
        self.expect(piece);
        let before = vcpu.executed();
        let exit = vcpu.run(Some(piece));
        let done = vcpu.executed() - before;
        self.told &= done == 0;
        (exit, done)
    }

    /// Has the hook end what begins one instruction more than these.
    fn expect(&self, piece: u64) {
        self.calls.made.store(0, Ordering::Relaxed);
        self.calls.most.store(piece - u64::from(self.told), Ordering::Relaxed);
    }

    /// Without a budget.
    fn run_freely(&mut self, vcpu: &mut Vcpu, piece: u64) -> (Exit, u64) {
        self.expect(piece);
        let exit = vcpu.run(None);
        let begun = u64::from(self.told) + self.calls.made.load(Ordering::Relaxed);
        self.told = match exit {
            Exit::Stopped => true,
            // Nothing was executed: requests come from events, before a run.
            Exit::Requested => self.told,
            _ => false,
        };
        (exit, begun - u64::from(self.told))
    }
}

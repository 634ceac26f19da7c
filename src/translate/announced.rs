//! What blocks tell of themselves as they run: to hooks, which are called, and to a trace, which is noted.

use super::block::{Leave, Stub};
use super::vcpu_block::at;
use super::{Request, Work, emit};
use crate::guest::GuestAddress;

/// Ranges of guest addresses, first and last, and what of them is announced.
#[derive(Clone, Copy, Debug, Default)]
pub struct Announced<'a> {
    /// Each instruction.
    pub instructions: &'a [(GuestAddress, GuestAddress)],
    /// Each arrival of control: blocks end where such a range begins.
    pub arrivals: &'a [(GuestAddress, GuestAddress)],
    /// What is noted in a trace.
    pub recorded: Option<Recorded>,
}

/// A range of guest addresses, first and last, and what of it is noted in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Of what.
    pub of: TraceOf,
    /// From where.
    pub span: (GuestAddress, GuestAddress),
}

/// What a trace has the addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceOf {
    /// Every instruction.
    Instructions,
    /// Every instruction at which control arrives: by a branch, behind an instruction that transfers control, by
    /// falling in from outside of the traced range.
    Blocks,
}

impl Recorded {
    /// Where arrivals are what is noted.
    #[must_use]
    pub fn arrivals(self) -> Option<(GuestAddress, GuestAddress)> {
        (self.of == TraceOf::Blocks).then_some(self.span)
    }
}

impl Announced<'_> {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.instructions.is_empty() && self.arrivals.is_empty() && self.recorded.is_none()
    }

    /// Whether control that comes from `from` to `to` without a branch is told to nobody.
    pub(super) fn continues(&self, from: GuestAddress, to: GuestAddress) -> bool {
        let traced = self.recorded.and_then(Recorded::arrivals);
        self.arrivals.iter().copied().chain(traced).any(|span| is_in(span, from) && is_in(span, to))
    }
}

impl Request<'_> {
    /// Whether the block's first instruction is announced as one at which control arrives.
    fn announces_arrival(&self) -> bool {
        self.announced.arrivals.iter().any(|span| is_in(*span, self.pc))
    }
}

impl Work<'_> {
    /// Announces the next instruction to whoever wants to know; whether anybody does.
    pub(super) fn announce(&mut self) -> bool {
        let (at, announced) = (self.pc(), self.request.announced);
        let stub = match self.done {
            0 if self.request.announces_arrival() => Stub::Arrival,
            _ if announced.instructions.iter().any(|span| is_in(*span, at)) => Stub::Instruction,
            _ => return false,
        };
        self.emitter.constant(emit::FREE, at.0);
        self.emitter.store(at::TARGET, emit::FREE);
        self.emitter.leave(stub, Leave::Announce { at });
        self.announces = true;
        true
    }

    /// Notes the next instruction in the trace, if that is wanted.
    pub(super) fn record(&mut self) {
        let (at, first) = (self.pc(), self.done == 0);
        let wanted = self.request.announced.recorded.is_some_and(|Recorded { of, span }| {
            is_in(span, at) && (first || of == TraceOf::Instructions)
        });
        if wanted {
            self.emitter.record(at.0);
            self.announces = true;
        }
    }
}

fn is_in((first, last): (GuestAddress, GuestAddress), address: GuestAddress) -> bool {
    (first..=last).contains(&address)
}

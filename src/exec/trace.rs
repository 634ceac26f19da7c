//! Traces: translated code notes addresses of what it executes, and a closure of the host is given many of them at
//! once: a few instructions of the host's for each, where a hook costs a call.
//!
//! A trace has what was executed to its end, in order, once. An instruction that was noted and then was not done (a
//! fault, a request to leave, a hook that stops) is taken back, and noted when it is. What the run loop steps it
//! notes itself. Where blocks are traced, it also strikes out an arrival that is none: a block that is entered in the
//! middle of where control came without a branch notes its start all the same.

use super::hooks::Span;
use super::vcpu::Vcpu;
use crate::guest::GuestAddress;
use crate::translate::{Recorded, TranslatedBlock};

/// Part of a trace: addresses of instructions in the order in which one vCPU has executed them. They are given in the
/// thread that runs it, some thousand at a time, and all that there are when a run ends.
#[derive(Clone, Copy, Debug)]
pub struct Traced<'a> {
    words: &'a [u64],
}

impl Traced<'_> {
    /// The addresses.
    pub fn addresses(&self) -> impl ExactSizeIterator<Item = GuestAddress> {
        self.words.iter().map(|word| GuestAddress(*word))
    }
}

/// The arrival that the block which was entered last notes although it is none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FalseArrival {
    /// How many notes there are before it, until it is struck out; …
    kept: Option<usize>,
    /// … and from then on, until there are more.
    struck: Option<usize>,
}

/// What was noted of an instruction that is not done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Noted {
    /// It is the first of its block.
    first: bool,
    recorded: bool,
}

impl Noted {
    /// Of the instruction at an offset of a block's host code.
    pub(super) fn of(translated: TranslatedBlock<'_>, offset: u32) -> Self {
        let first = translated.side_entry(offset).is_none_or(|entry| entry.index == 0);
        Self { first, recorded: translated.is_recorded(offset) }
    }
}

fn span((first, last): (GuestAddress, GuestAddress)) -> Span {
    Span { first, last }
}

impl Vcpu {
    /// What is traced.
    pub(super) fn recorded(&self) -> Option<Recorded> {
        self.hooks.as_ref()?.recorded()
    }

    /// Whether the instruction at RIP is to be in the trace once it is done.
    pub(super) fn is_traced(&self) -> bool {
        self.recorded().is_some_and(|recorded| {
            span(recorded.span).contains(self.pc) && !self.continues_traced(recorded)
        })
    }

    /// Whether arrivals are traced, and control at RIP is none.
    fn continues_traced(&self, recorded: Recorded) -> bool {
        let arrivals = recorded.arrivals().map(span);
        arrivals.is_some_and(|arrivals| self.place.comes_inside(self.pc, arrivals))
    }

    /// The block at RIP is about to be entered.
    pub(super) fn expect_arrival(&mut self) {
        self.false_arrival = FalseArrival::default();
        if self.recorded().is_some_and(|recorded| self.continues_traced(recorded)) {
            self.false_arrival.kept = Some(self.memory.records().len());
        }
    }

    /// Translated code was left: strikes out what [`Self::expect_arrival`] has expected.
    pub(super) fn strike(&mut self) {
        if let Some(kept) = self.false_arrival.kept.take()
            && self.memory.records().get(kept) == Some(&self.pc.0)
        {
            self.memory.remove_record(kept);
            self.false_arrival.struck = Some(kept);
        }
        if let Some(struck) = self.false_arrival.struck
            && self.memory.records().len() > struck
        {
            // Control has arrived somewhere since.
            self.false_arrival.struck = None;
            self.place.elsewhere();
        }
    }

    /// Whether control has been behind the false arrival, but nowhere else that is noted.
    pub(super) fn has_struck(&self) -> bool {
        self.false_arrival.struck.is_some()
    }

    /// The block was left before an instruction was done: what was noted of it goes, and the next who executes it
    /// is to know that control arrived there.
    pub(super) fn take_back(&mut self, noted: Noted) {
        let Noted { first, recorded } = noted;
        let struck = first && self.has_struck();
        if recorded && !struck {
            self.memory.remove_last_record();
        }
        // Either the note was no false one, or the block is another than that of the false one.
        if first && recorded != struck {
            self.place.arrived();
        }
    }

    /// The same of the instruction at an offset of a block's host code.
    pub(super) fn take_back_at(&mut self, translated: TranslatedBlock<'_>, offset: u32) {
        if self.recorded().is_some() {
            self.take_back(Noted::of(translated, offset));
        }
    }

    /// Gives what was noted to whoever traces.
    pub(super) fn deliver(&mut self) {
        if self.memory.records().is_empty() {
            return;
        }
        let words = self.memory.records().to_vec();
        self.memory.clear_records();
        if let Some(closure) = self.hooks.as_ref().and_then(|hooks| hooks.traced()) {
            closure.with(|call| call(Traced { words: &words }));
        }
    }
}

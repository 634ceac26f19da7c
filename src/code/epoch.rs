//! [`Epoch`]: when nobody can have kept what was taken out of the lookups of one machine. Each machine
//! has its own, or a vCPU of another that stays in guest code would keep all memory from coming back.
//!
//! Whoever looks up is a [`Participant`] and does it pinned. One belongs to a vCPU, another to whoever
//! holds the machine's lock, and both move between threads.
#![allow(unsafe_code, reason = "lets participants move between threads")]

use std::marker::PhantomData;
use std::ops::Deref;

use crossbeam_epoch::{Collector, LocalHandle};

use super::limbo::{Limbo, hurry};
use super::sync::Guard;

/// See the file's head.
#[derive(Clone, Debug)]
pub(crate) struct Epoch(Collector);

/// Somebody who pins the epoch.
#[derive(Debug)]
pub(crate) struct Participant(LocalHandle);

// SAFETY: crossbeam keeps handles in their threads since they and their guards count without atomics.
// Here a guard borrows its participant exclusively, so that one thread at a time has both. What waits
// in a participant to be freed may be freed by any thread: it is deferred with `Send`, or the lookups'
// own.
unsafe impl Send for Participant {}
// SAFETY: a shared reference to one is good for nothing.
unsafe impl Sync for Participant {}

/// As long as this lives, nothing goes that could be looked up when it was made.
#[derive(Debug)]
pub(crate) struct Pinned<'a> {
    guard: Guard,
    participant: PhantomData<&'a mut Participant>,
}

impl Epoch {
    pub(crate) fn new() -> Self {
        Self(Collector::new())
    }

    pub(crate) fn participant(&self) -> Participant {
        Participant(self.0.register())
    }
}

impl Participant {
    pub(crate) fn pin(&mut self) -> Pinned<'_> {
        Pinned { guard: self.0.pin(), participant: PhantomData }
    }

    /// Lets what was retired go, from here on.
    pub(crate) fn let_go<T: Send + 'static>(&mut self, limbo: &Limbo<T>) {
        limbo.let_go(|| self.0.pin());
    }

    /// Lets time go on for what waits in any limbo of this epoch.
    pub(crate) fn hurry(&mut self) {
        hurry(|| self.0.pin());
    }
}

impl Pinned<'_> {
    /// Is not pinned while `work` runs. What was looked up before may be gone afterwards.
    pub(crate) fn unpinned<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.guard.repin_after(work)
    }
}

impl Deref for Pinned<'_> {
    type Target = Guard;

    fn deref(&self) -> &Guard {
        &self.guard
    }
}

//! [`Shared`]: what the vCPUs of a machine share, and the lock around most of it.
//!
//! A vCPU holds the lock while it translates, chains, or executes an instruction by itself; to look up
//! translations and to run them it takes none. A memory hook or a device that asks the machine itself
//! for something would wait for its own run for ever: it panics instead.

use super::core::Core;
use super::vcpu_memory::{Door, PollCell};
use crate::code::gate::Gates;
use crate::code::sync::{Arc, AtomicU64, FairGuard, FairMutex, Ordering};
use crate::code::{Epoch, Lookups};

/// See the file's head.
#[derive(Debug)]
pub(super) struct Shared {
    core: FairMutex<Core>,
    /// The thread of a run that holds the lock, or 0.
    runner: AtomicU64,
    pub(super) lookups: Arc<Lookups>,
    pub(super) epoch: Epoch,
    pub(super) gates: Arc<Gates<PollCell>>,
    pub(super) door: Door,
    /// Of the invalidations up to this one, no vCPU runs any more what they made invalid.
    waited: AtomicU64,
}

/// A run under way, which takes the lock when it needs it.
pub(super) struct Running<'a> {
    shared: &'a Shared,
    core: Option<FairGuard<'a, Core>>,
}

impl Shared {
    pub(super) fn new(core: Core) -> Self {
        let (lookups, epoch) = (core.cache.lookups(), core.cache.epoch());
        let (gates, door) = (Arc::clone(&core.gates), core.door);
        let (core, runner, waited) = (FairMutex::new(core), AtomicU64::new(0), AtomicU64::new(0));
        Self { core, runner, lookups, epoch, gates, door, waited }
    }

    /// Takes the lock. A panic while it was held, in a hook for one, leaves nothing half done.
    pub(super) fn lock(&self) -> FairGuard<'_, Core> {
        // Only its own value matters to a thread, and that it has stored itself.
        assert!(
            self.runner.load(Ordering::Relaxed) != this_thread(),
            "a memory hook or a device called its own machine: it has to use what it is given"
        );
        self.core.lock()
    }

    /// Changes what vCPUs may be running. When it returns, none runs code that the change has
    /// invalidated, or that somebody else had invalidated before it could.
    pub(super) fn change<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        let result = self.change_soon(work);
        let generation = self.gates.generation();
        if self.waited.load(Ordering::Acquire) < generation {
            self.gates.wait();
            self.waited.fetch_max(generation, Ordering::AcqRel);
        }
        result
    }

    /// The same without the wait.
    pub(super) fn change_soon<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        work(&mut self.lock())
    }
}

impl<'a> Running<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self { shared, core: None }
    }

    /// Takes the lock, if it is not held.
    pub(super) fn core(&mut self) -> &mut Core {
        let shared = self.shared;
        self.core.get_or_insert_with(|| {
            let core = shared.lock();
            shared.runner.store(this_thread(), Ordering::Relaxed);
            core
        })
    }

    /// Gives the lock back, if it is held.
    pub(super) fn release(&mut self) {
        if self.core.is_some() {
            self.shared.runner.store(0, Ordering::Relaxed);
            self.core = None;
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// A number that no other living thread has.
fn this_thread() -> u64 {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark) as u64)
}

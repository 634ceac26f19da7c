//! [`Shared`]: what the vCPUs of a machine share, and the lock around most of it.
//!
//! A vCPU holds the lock while it translates, chains, or executes an instruction by itself; to look up
//! translations and to run them it takes none, and whatever the host attached to the machine is called
//! without it: [`Locked::unlocked`] gives it up in the middle of an instruction.

use std::ops::{Deref, DerefMut};

use super::core::Core;
use super::vcpu_memory::{Door, PollCell};
use crate::code::gate::Gates;
use crate::code::sync::{Arc, AtomicU64, FairGuard, FairMutex, Ordering};
use crate::code::{Epoch, Lookups};

/// See the file's head.
#[derive(Debug)]
pub(super) struct Shared {
    core: FairMutex<Core>,
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
    core: Option<Locked<'a>>,
}

/// The machine's lock, held, and what is under it.
pub(super) struct Locked<'a> {
    shared: &'a Shared,
    core: FairGuard<'a, Core>,
}

impl Shared {
    pub(super) fn new(core: Core) -> Self {
        let (lookups, epoch) = (core.cache.lookups(), core.cache.epoch());
        let (gates, door) = (Arc::clone(&core.gates), core.door);
        Self { core: FairMutex::new(core), lookups, epoch, gates, door, waited: AtomicU64::new(0) }
    }

    /// Takes the lock. A panic while it was held, in a hook for one, leaves nothing half done.
    pub(super) fn lock(&self) -> FairGuard<'_, Core> {
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
    pub(super) fn core(&mut self) -> &mut Locked<'a> {
        let shared = self.shared;
        self.core.get_or_insert_with(|| Locked { shared, core: shared.lock() })
    }

    /// Gives the lock back, if it is held.
    pub(super) fn release(&mut self) {
        self.core = None;
    }
}

impl Locked<'_> {
    /// Gives the lock back while `work` runs. What was known of the machine may be otherwise afterwards.
    pub(super) fn unlocked<T>(&mut self, work: impl FnOnce(&Shared) -> T) -> T {
        let shared = self.shared;
        FairGuard::unlocked(&mut self.core, || work(shared))
    }
}

impl Deref for Locked<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

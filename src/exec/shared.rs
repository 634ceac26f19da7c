//! [`Shared`]: the lock around what the vCPUs of a machine share.
//!
//! The lock is held for a run. A hook or a device that asks the machine itself for something would
//! wait for its own run for ever: it panics instead.

use std::ops::{Deref, DerefMut};

use super::core::Core;
use crate::code::sync::{AtomicU64, Mutex, MutexGuard, Ordering, PoisonError};

/// See the file's head.
#[derive(Debug)]
pub(super) struct Shared {
    core: Mutex<Core>,
    /// The thread that runs guest code, or 0.
    runner: AtomicU64,
}

/// The lock, held to run guest code.
pub(super) struct Running<'a> {
    shared: &'a Shared,
    core: MutexGuard<'a, Core>,
}

impl Shared {
    pub(super) fn new(core: Core) -> Self {
        Self { core: Mutex::new(core), runner: AtomicU64::new(0) }
    }

    /// Takes the lock. A panic while it was held, in a hook for one, leaves nothing half done.
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // Only its own value matters to a thread, and that it has stored itself.
        assert!(
            self.runner.load(Ordering::Relaxed) != this_thread(),
            "a hook or a device called its own machine: it has to use what it is given"
        );
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock to run guest code.
    pub(super) fn run(&self) -> Running<'_> {
        let core = self.lock();
        self.runner.store(this_thread(), Ordering::Relaxed);
        Running { shared: self, core }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Before the lock is given back.
        self.shared.runner.store(0, Ordering::Relaxed);
    }
}

impl Deref for Running<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl DerefMut for Running<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

/// A number that no other living thread has.
fn this_thread() -> u64 {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark) as u64)
}

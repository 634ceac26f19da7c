//! Every atomic, lock, epoch and thread of the code cache and of the run loop comes from here, so that
//! one file decides which implementation of them the protocols run on: the standard library's, or
//! loom's, which explores their interleavings.

#[cfg(not(loom))]
mod implementation {
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
    pub(crate) use std::thread::yield_now;

    /// A lock that is handed over now and then, so that nobody is kept from it by threads that take it
    /// again and again. It knows no poison.
    pub(crate) use parking_lot::{Mutex as FairMutex, MutexGuard as FairGuard};
}

#[cfg(loom)]
mod implementation {
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now;
    pub(crate) use std::sync::PoisonError;
}

/// A mark that protocols do not rely on, so that loom has nothing to explore in it.
#[derive(Debug, Default)]
pub(crate) struct Hint(std::sync::atomic::AtomicBool);

impl Hint {
    /// Sets it; costs a load if it is.
    pub(crate) fn set(&self) {
        if !self.is_set() {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    pub(crate) fn clear(&self) {
        self.0.store(false, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

pub(crate) use crossbeam_epoch::{Atomic, Guard, Owned, Shared, unprotected};
pub(crate) use implementation::*;

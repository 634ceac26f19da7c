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
    /// A guard of it that borrows nothing.
    pub(crate) type OwnedGuard<T> = parking_lot::ArcMutexGuard<parking_lot::RawMutex, T>;

    /// Stores `value`, and does nothing that follows before that: on x86 an exchange is both, and costs less than
    /// MFENCE. What follows and must not come before is SeqCst, or not atomic.
    pub(crate) fn store_fenced(word: &AtomicU64, value: u64) {
        word.swap(value, Ordering::SeqCst);
    }
}

#[cfg(loom)]
mod implementation {
    pub(crate) use loom::sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
    pub(crate) use loom::thread::yield_now;
    pub(crate) use std::sync::PoisonError;

    pub(crate) use crate::fair::{FairMutex, OwnedGuard};

    /// Loom knows no order of accesses that are SeqCst, but that of fences.
    pub(crate) fn store_fenced(word: &AtomicU64, value: u64) {
        word.store(value, Ordering::Release);
        fence(Ordering::SeqCst);
    }
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

/// References to a lock, which no protocol counts: loom's `Arc` is no receiver of methods.
pub(crate) use std::sync::Arc as LockArc;

pub(crate) use crossbeam_epoch::{Atomic, Guard, Owned, Shared, unprotected};
pub(crate) use implementation::*;

//! Every atomic, lock, epoch and thread of the code cache and of the run loop comes from here, so that
//! one file decides which implementation of them the protocols run on: the standard library's, or
//! loom's, which explores their interleavings.

#[cfg(not(loom))]
mod implementation {
    pub(crate) use std::sync::atomic::{
        AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub(crate) use std::sync::{Arc, Mutex, PoisonError};
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

pub(crate) use crossbeam_epoch::{Atomic, Guard, Owned, Shared, unprotected};
pub(crate) use implementation::*;

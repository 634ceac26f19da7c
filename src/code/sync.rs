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

pub(crate) use crossbeam_epoch::{Atomic, Guard, Owned, Shared, pin, unprotected};
pub(crate) use implementation::*;

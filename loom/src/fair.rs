//! What `sync.rs` has of parking_lot, on loom's lock: a mutex whose guard borrows nothing.
#![allow(dead_code, unsafe_code, reason = "only models of `keep.rs` use it; loom checks the cell")]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::{Condvar, Mutex};

/// A mutex.
pub(crate) struct FairMutex<T: ?Sized> {
    held: Mutex<bool>,
    free: Condvar,
    value: UnsafeCell<T>,
}

/// It is held.
pub(crate) struct OwnedGuard<T: ?Sized>(Arc<FairMutex<T>>);

// SAFETY: one thread at a time has the guard, and loom reports accesses that are not ordered.
unsafe impl<T: ?Sized + Send> Sync for FairMutex<T> {}

impl<T> FairMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { held: Mutex::new(false), free: Condvar::new(), value: UnsafeCell::new(value) }
    }
}

impl<T: ?Sized> FairMutex<T> {
    pub(crate) fn try_lock_arc(self: &Arc<Self>) -> Option<OwnedGuard<T>> {
        let mut held = self.held.lock().expect("no panic under it");
        let taken = std::mem::replace(&mut *held, true);
        (!taken).then(|| OwnedGuard(Arc::clone(self)))
    }

    pub(crate) fn lock_arc(self: &Arc<Self>) -> OwnedGuard<T> {
        let mut held = self.held.lock().expect("no panic under it");
        while *held {
            held = self.free.wait(held).expect("no panic under it");
        }
        *held = true;
        OwnedGuard(Arc::clone(self))
    }
}

impl<T: ?Sized> OwnedGuard<T> {
    pub(crate) fn mutex(guard: &Self) -> &Arc<FairMutex<T>> {
        &guard.0
    }
}

impl<T: ?Sized> Deref for OwnedGuard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        self.0.value.with(|value| unsafe { &*value })
    }
}

impl<T: ?Sized> DerefMut for OwnedGuard<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and this is its only guard.
        self.0.value.with_mut(|value| unsafe { &mut *value })
    }
}

impl<T: ?Sized> Drop for OwnedGuard<T> {
    fn drop(&mut self) {
        *self.0.held.lock().expect("no panic under it") = false;
        self.0.free.notify_one();
    }
}

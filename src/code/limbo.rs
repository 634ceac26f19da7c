//! [`Limbo`]: where retired things are until no vCPU can be in them.
//!
//! A vCPU looks up and runs code under one guard of the epoch. So what was made unreachable before it
//! was put here is out of use once every guard of that time is gone; then it comes back by
//! [`Limbo::returned`], to be used again or dropped (I5).

use super::sync::{Arc, AtomicUsize, Guard, Mutex, Ordering, PoisonError};

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Limbo<T> {
    back: Arc<Mutex<Vec<T>>>,
    inside: Arc<AtomicUsize>,
}

impl<T: Send + 'static> Limbo<T> {
    pub(crate) fn new() -> Self {
        Self { back: Arc::new(Mutex::new(Vec::new())), inside: Arc::new(AtomicUsize::new(0)) }
    }

    /// How many things are in it or on their way back.
    pub(crate) fn count(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }

    /// Takes in what no lookup finds any more. Until [`Self::settle`] it waits with whoever pins `guard`.
    pub(crate) fn retire(&self, thing: T, guard: &Guard) {
        self.inside.fetch_add(1, Ordering::Relaxed);
        let back = Arc::clone(&self.back);
        guard.defer(move || back.lock().unwrap_or_else(PoisonError::into_inner).push(thing));
    }

    /// Has what was retired under guards of the same participant come back even if that one does nothing
    /// more. It costs what is freed on the way, so it is no part of retiring.
    pub(crate) fn settle(&self, guard: &Guard) {
        if self.count() != 0 {
            guard.flush();
        }
    }

    /// What has come back.
    pub(crate) fn returned(&self) -> Vec<T> {
        let back = std::mem::take(&mut *self.back.lock().unwrap_or_else(PoisonError::into_inner));
        self.inside.fetch_sub(back.len(), Ordering::Relaxed);
        back
    }
}

/// Lets time go on for what waits in any limbo of the epoch that `pin` pins. The caller has no guard.
pub(crate) fn hurry(mut pin: impl FnMut() -> Guard) {
    // An epoch is over when all guards have seen it; what is retired in one waits for two more.
    for _ in 0..3 {
        pin().flush();
    }
}

//! [`Limbo`]: where retired things are until no vCPU can be in them.
//!
//! A vCPU looks up and runs code under one guard of the epoch. So what was made unreachable before it
//! was let go is out of use once every guard of that time is gone; then it comes back by
//! [`Limbo::returned`], to be used again or dropped (I5).
//!
//! A vCPU that was called out of its code, and unpinned the epoch meanwhile, may go on under another guard
//! without a lookup, if the generation is still that of its code. So things are let go after the generation was
//! counted: who did not see the count has a guard of a time before.

use super::sync::{Arc, AtomicUsize, Guard, Mutex, MutexGuard, Ordering, PoisonError};

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Limbo<T> {
    /// Not let go yet.
    aside: Mutex<Vec<T>>,
    back: Arc<Mutex<Vec<T>>>,
    inside: Arc<AtomicUsize>,
}

impl<T: Send + 'static> Limbo<T> {
    pub(crate) fn new() -> Self {
        Self {
            aside: Mutex::new(Vec::new()),
            back: Arc::new(Mutex::new(Vec::new())),
            inside: Arc::new(AtomicUsize::new(0)),
        }
    }

    /// How many things are in it or on their way back.
    pub(crate) fn count(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }

    /// Takes in what no lookup finds any more, until [`Self::let_go`].
    pub(crate) fn retire(&self, thing: T) {
        self.inside.fetch_add(1, Ordering::Relaxed);
        list(&self.aside).push(thing);
    }

    /// Lets what was retired come back, once each guard of this time is gone. The generation was counted since it
    /// was retired. Until [`Self::settle`] it waits with whoever pins the guard.
    pub(crate) fn let_go(&self, pin: impl FnOnce() -> Guard) {
        let mut aside = list(&self.aside);
        if aside.is_empty() {
            return;
        }
        let guard = pin();
        for thing in aside.drain(..) {
            let back = Arc::clone(&self.back);
            guard.defer(move || list(&back).push(thing));
        }
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
        let back = std::mem::take(&mut *list(&self.back));
        self.inside.fetch_sub(back.len(), Ordering::Relaxed);
        back
    }
}

fn list<T>(of: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets time go on for what waits in any limbo of the epoch that `pin` pins. The caller has no guard.
pub(crate) fn hurry(mut pin: impl FnMut() -> Guard) {
    // An epoch is over when all guards have seen it; what is retired in one waits for two more.
    for _ in 0..3 {
        pin().flush();
    }
}

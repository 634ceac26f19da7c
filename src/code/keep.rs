//! [`Keepable`]: a lock that whoever has taken it keeps for the next time, until somebody else wants it. A
//! vCPU that calls one hook again and again pays for no lock then.
//!
//! A vCPU keeps one until it leaves guest code, or has another to call. Who finds the lock taken
//!
//! 1. says that it is wanted, which nobody takes back: from then on nobody keeps it;
//! 2. rings all vCPUs out of guest code;
//! 3. waits for it, and keeps none meanwhile.
//!
//! Whoever keeps it has taken it since it last quieted its bell. So the ring stays until it leaves guest code,
//! where it lets go of the lock.

use super::sync::{AtomicBool, FairMutex, LockArc, Ordering, OwnedGuard};

/// See the file's head.
pub(crate) struct Keepable<T: ?Sized> {
    wanted: AtomicBool,
    lock: LockArc<FairMutex<T>>,
}

/// The lock, held.
pub(crate) type Kept<T> = OwnedGuard<T>;

impl<T: ?Sized> Keepable<T> {
    pub(crate) fn new(lock: LockArc<FairMutex<T>>) -> Self {
        Self { wanted: AtomicBool::new(false), lock }
    }

    /// Works under the lock, and keeps it, if nobody has ever waited for it. What was kept is let go, if it is
    /// another's. `ring` rings all vCPUs that may keep it.
    pub(crate) fn with(
        &self,
        kept: &mut Option<Kept<T>>,
        ring: impl FnOnce(),
        work: impl FnOnce(&mut T),
    ) {
        let held = match kept {
            Some(held) if LockArc::ptr_eq(OwnedGuard::mutex(held), &self.lock) => held,
            _ => {
                *kept = None;
                kept.insert(self.take(ring))
            }
        };
        work(held);
        if self.wanted.load(Ordering::Relaxed) {
            *kept = None;
        }
    }

    #[cold]
    fn take(&self, ring: impl FnOnce()) -> Kept<T> {
        self.lock.try_lock_arc().unwrap_or_else(|| {
            self.wanted.store(true, Ordering::Relaxed);
            ring();
            self.lock.lock_arc()
        })
    }
}

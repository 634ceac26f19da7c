//! [`Kicks`]: a thread that asks a vCPU to leave again and again, at any time. Whoever runs it goes on each time, and
//! must come to the same end as without.

use std::hint::spin_loop;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::exec::Kick;

/// Turns of waiting between two kicks, at most: some tens of microseconds.
const LONGEST: u64 = 1 << 10;

/// See the file's head.
pub(super) struct Kicks {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    target: Mutex<Option<Kick>>,
    closing: AtomicBool,
}

impl Kicks {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let kicking = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kicks".to_owned()).spawn(move || {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
            while !kicking.closing.load(Ordering::Relaxed) {
                kicking.kick();
                (0..random.next_u64() % LONGEST).for_each(|_| spin_loop());
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Kicks this vCPU from here on, or none.
    pub(super) fn aim(&self, target: Option<Kick>) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

impl Shared {
    fn kick(&self) {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        target.iter().for_each(Kick::ask);
    }
}

impl Drop for Kicks {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

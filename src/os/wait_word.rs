//! A word in shared memory on which a process sleeps until another changes it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex;

/// Borrowed view of such a word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitWord<'a>(pub(crate) &'a AtomicU32);

impl WaitWord<'_> {
    /// Stores `value` and wakes who sleeps. Pairs with the load in the sleeper's loop: what was
    /// written before is seen there.
    pub(crate) fn set(self, value: u32) {
        self.0.store(value, Ordering::Release);
        // Not private: the sleeper is another process. It can only fail on a bad address.
        let _ = futex::wake(self.0, futex::Flags::empty(), 1);
    }

    /// Waits until the word is `value`, at most about `timeout`; whether it is. Pairs with the
    /// other side's store: what that side wrote before is seen after.
    pub(crate) fn wait_for(self, value: u32, timeout: Duration) -> bool {
        let timeout = futex::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        loop {
            let now = self.0.load(Ordering::Acquire);
            if now == value {
                return true;
            }
            match futex::wait(self.0, futex::Flags::empty(), now, Some(&timeout)) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return self.0.load(Ordering::Acquire) == value,
            }
        }
    }
}

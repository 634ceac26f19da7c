//! How much processor time a thread has had.
#![allow(unsafe_code, reason = "no safe wrapper knows the clocks of threads")]

use std::time::Duration;

/// The processor time of the thread that made this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    pub(crate) fn of_this_thread() -> Self {
        let mut clock = 0;
        // SAFETY: the calling thread exists and `clock` is where the number may be written.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        Self(if error == 0 { clock } else { libc::CLOCK_MONOTONIC })
    }

    /// Processor time so far; zero once the thread is gone.
    pub(crate) fn now(self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is where the time may be written.
        unsafe { libc::clock_gettime(self.0, &raw mut time) };
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    }
}

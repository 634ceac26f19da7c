//! [`Watchdog`]: a thread that stops a guest that runs on and on.
//!
//! What is limited is the processor time of the engine's thread, so that a busy host does not end
//! guests early. Protocol: the engine calls [`Watchdog::begin`] before a leg and [`Watchdog::end`]
//! behind it. Both take the lock under which the thread stops a guest, so that it never stops the
//! leg after the one it means. A request that comes before the guest really runs is lost; the
//! thread repeats it at each tick until the leg has ended.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::os::ThreadClock;

/// How often the thread looks. A leg is stopped at most two of these after its limit.
const TICK: Duration = Duration::from_millis(10);

/// Stops the guest of one engine.
pub(super) trait Stop: Clone + Send + 'static {
    /// Asks the guest to stop soon.
    fn stop(&self);
}

struct Watch<S> {
    /// Processor time that a leg may take.
    limit: Duration,
    /// Counts the legs.
    leg: u64,
    /// How to stop the leg that runs now.
    running: Option<S>,
    fired: bool,
    closing: bool,
}

struct Shared<S> {
    watch: Mutex<Watch<S>>,
    closing: Condvar,
}

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Watch<S>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the file's head.
pub(super) struct Watchdog<S> {
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Stop> Watchdog<S> {
    /// Watches legs that run in the calling thread and may take `limit` each.
    pub(super) fn start(limit: Duration) -> std::io::Result<Self> {
        let watch = Watch { limit, leg: 0, running: None, fired: false, closing: false };
        let shared = Arc::new(Shared { watch: Mutex::new(watch), closing: Condvar::new() });
        let clock = ThreadClock::of_this_thread();
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || self::watch(&watched, clock))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Legs may take `limit` each from now on.
    pub(super) fn set_limit(&self, limit: Duration) {
        self.shared.lock().limit = limit;
    }

    /// A leg is about to run.
    pub(super) fn begin(&self, stopper: &S) {
        let mut watch = self.shared.lock();
        watch.leg += 1;
        watch.fired = false;
        watch.running = Some(stopper.clone());
    }

    /// Whether the leg under way was asked to stop.
    pub(super) fn fired(&self) -> bool {
        self.shared.lock().fired
    }

    /// The leg has ended; whether it was asked to.
    pub(super) fn end(&self) -> bool {
        let mut watch = self.shared.lock();
        watch.running = None;
        watch.fired
    }
}

impl<S> Drop for Watchdog<S> {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.closing.notify_one();
        if let Some(thread) = self.thread.take() {
            // It panics only if the lock is broken, and then there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

fn watch<S: Stop>(shared: &Shared<S>, clock: ThreadClock) {
    // The leg last seen, and the time when it was first seen.
    let mut seen = (0, Duration::ZERO);
    let mut watch = shared.lock();
    while !watch.closing {
        (watch, _) =
            shared.closing.wait_timeout(watch, TICK).unwrap_or_else(PoisonError::into_inner);
        let Some(stopper) = &watch.running else { continue };
        if seen.0 != watch.leg {
            seen = (watch.leg, clock.now());
        } else if clock.now().saturating_sub(seen.1) >= watch.limit {
            stopper.stop();
            watch.fired = true;
        }
    }
}

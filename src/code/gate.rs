//! [`Gate`]: where one vCPU is, and how it is asked to come out; [`Gates`]: those of a machine, and
//! how often code was invalidated under them.
//!
//! A vCPU, out of guest code:
//!
//! 1. [`Gate::settle`]: quiets its bell, then takes requests to end the run.
//! 2. [`Gate::enter`]: says that it is inside, then reads the generation. If that is not the one its
//!    jump cache was filled in, it leaves, empties the cache, and enters anew.
//! 3. Looks up a translation and runs. Polls look at the bell.
//! 4. [`Gate::leave`].
//!
//! Whoever invalidates code:
//!
//! 1. makes the old code unreachable by lookups;
//! 2. [`Gates::invalidated`]: counts the generation up, then rings all bells;
//! 3. if nobody may be in old code any more, [`Gates::wait`]: waits until each vCPU that is inside has
//!    been outside.
//!
//! No request is lost (I6): a bell rung before step 1 of the vCPU is read by the exchange that quiets
//! it, which makes visible what was stored before the ring; a bell rung later stays. No vCPU is missed
//! (I4): of the vCPU's store of its place and the invalidator's count, each followed by a fence and a
//! look at the other, one sees the other.

use super::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, PoisonError, fence, yield_now};

/// What a vCPU's polls look at. Rings from any thread; quieted by its vCPU alone.
pub(crate) trait Bell {
    /// Makes the next poll leave, by an exchange that releases.
    fn ring(&self);
    /// Whether it rings.
    fn rings(&self) -> bool;
    /// Makes polls pass, by an exchange that acquires what was stored before the ring.
    fn quiet(&self);
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Gate<B> {
    /// Counts how often the vCPU came in and went out: odd while it is inside.
    passes: AtomicU64,
    requested: AtomicBool,
    bell: B,
}

impl<B: Bell> Gate<B> {
    pub(crate) fn new(bell: B) -> Self {
        Self { passes: AtomicU64::new(0), requested: AtomicBool::new(false), bell }
    }

    pub(crate) fn bell(&self) -> &B {
        &self.bell
    }

    /// Asks for the end of the vCPU's run, from any thread.
    pub(crate) fn request(&self) {
        self.requested.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Whether an end is asked for that was not granted yet.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Quiets the bell and takes a request; whether there was one.
    pub(crate) fn settle(&self) -> bool {
        if self.bell.rings() {
            self.bell.quiet();
        }
        self.is_requested() && self.requested.swap(false, Ordering::AcqRel)
    }

    /// The vCPU is inside from here on. Gives the generation it is in.
    pub(crate) fn enter(&self, gates: &Gates<B>) -> u64 {
        let passes = self.passes.load(Ordering::Relaxed);
        // Releases, since `wait` may see the vCPU inside again without having seen it outside.
        self.passes.store(passes + 1, Ordering::Release);
        // Pairs with that of `wait`.
        fence(Ordering::SeqCst);
        gates.generation.load(Ordering::Acquire)
    }

    /// It is outside.
    pub(crate) fn leave(&self) {
        let passes = self.passes.load(Ordering::Relaxed);
        self.passes.store(passes + 1, Ordering::Release);
    }

    fn is_inside(&self) -> bool {
        self.passes.load(Ordering::Acquire) % 2 == 1
    }

    /// Waits until the vCPU has been outside at some time since the call.
    fn wait(&self) {
        let before = self.passes.load(Ordering::Acquire);
        if before % 2 == 1 {
            // It may have come in since it was rung out, with a quiet bell, to stay.
            self.bell.ring();
            while self.passes.load(Ordering::Acquire) == before {
                yield_now();
            }
        }
    }
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Gates<B> {
    generation: AtomicU64,
    all: Mutex<Vec<Arc<Gate<B>>>>,
}

impl<B: Bell> Gates<B> {
    pub(crate) fn new() -> Self {
        Self { generation: AtomicU64::new(0), all: Mutex::new(Vec::new()) }
    }

    /// A gate for a new vCPU.
    pub(crate) fn add(&self, bell: B) -> Arc<Gate<B>> {
        let gate = Arc::new(Gate::new(bell));
        self.list(|all| all.push(Arc::clone(&gate)));
        gate
    }

    /// Takes the gate of a vCPU out that will never enter again.
    pub(crate) fn remove(&self, gate: &Arc<Gate<B>>) {
        self.list(|all| all.retain(|other| !Arc::ptr_eq(other, gate)));
    }

    /// Code that could be looked up cannot any more: each vCPU comes out and looks anew. Gives the
    /// vCPUs that may still be in it, for [`Self::wait`].
    pub(crate) fn invalidated(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.list(|all| all.iter().for_each(|gate| gate.bell.ring()));
    }

    /// How often code was invalidated.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Waits until each vCPU that was inside has been outside, but for the caller's own.
    pub(crate) fn wait(&self) {
        // Pairs with that of `enter`.
        fence(Ordering::SeqCst);
        let inside: Vec<_> =
            self.list(|all| all.iter().filter(|gate| gate.is_inside()).cloned().collect());
        inside.iter().for_each(|gate| gate.wait());
    }

    /// How many vCPUs there are.
    pub(crate) fn count(&self) -> usize {
        self.list(|all| all.len())
    }

    fn list<T>(&self, work: impl FnOnce(&mut Vec<Arc<Gate<B>>>) -> T) -> T {
        // What is done under this lock does not panic half way.
        work(&mut self.all.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

//! What models are made of: [`explore`], the code that a vCPU runs ([`HostCode`]), its bell, and the
//! part of its run loop that keeps the gate's protocol ([`Vcpu`]).
#![allow(unsafe_code, reason = "reads and writes cells that loom checks")]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use loom::cell::UnsafeCell;

use crate::code::gate::{Bell, Gate, Gates};
use crate::code::sync::{Arc, AtomicBool, Ordering, yield_now};

/// The epoch of all models.
pub(crate) use crossbeam_epoch::pin;

/// Runs `model` in all interleavings with at most so many preemptions, and prints how many there
/// were. `TREGION_LOOM_DEEP` (seconds) lifts the bound and sets a limit of time instead.
pub(crate) fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let deep = std::env::var("TREGION_LOOM_DEEP").ok();
    let limit = deep.map(|seconds| Duration::from_secs(seconds.parse().expect("seconds")));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = if limit.is_some() { None } else { Some(preemptions) };
    builder.max_duration = limit;
    builder.max_branches = 5_000;
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&executions);
    let start = Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Relaxed);
        model();
    });
    let ended = limit.is_none_or(|limit| start.elapsed() < limit);
    println!("\nexplored {} {}", executions.load(Relaxed), if ended { "ended" } else { "open" });
}

/// A thread of the model.
pub(crate) fn spawn(work: impl FnOnce() + 'static) -> loom::thread::JoinHandle<()> {
    loom::thread::spawn(work)
}

/// Makes the thread one that has used the epoch before.
pub(crate) fn warm_up() {
    drop(pin());
}

/// What is in a block's memory once it is somebody else's.
pub(crate) const REUSED: u64 = 99;

/// Host code, a word a block: running it reads, giving its memory to something else writes.
pub(crate) struct HostCode {
    blocks: Vec<UnsafeCell<u64>>,
}

// SAFETY: loom reports each access to a cell that is not ordered with another.
unsafe impl Sync for HostCode {}
// SAFETY: as above.
unsafe impl Send for HostCode {}

impl HostCode {
    pub(crate) fn new(blocks: &[u64]) -> Arc<Self> {
        Arc::new(Self { blocks: blocks.iter().map(|block| UnsafeCell::new(*block)).collect() })
    }

    /// Runs a block; what it was translated from.
    pub(crate) fn run(&self, block: usize) -> u64 {
        // SAFETY: loom checks.
        self.blocks[block].with(|word| unsafe { *word })
    }

    pub(crate) fn write(&self, block: usize, source: u64) {
        // SAFETY: loom checks.
        self.blocks[block].with_mut(|word| unsafe { *word = source });
    }
}

/// A bell as the polls see it: a byte in the vCPU's own block.
#[derive(Clone)]
pub(crate) struct PolledByte(Arc<AtomicBool>);

impl PolledByte {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }
}

impl Bell for PolledByte {
    /// An exchange: by a store, what an earlier ring made visible would not be acquired by who quiets
    /// the later one.
    fn ring(&self) {
        self.0.swap(true, Ordering::AcqRel);
    }

    fn rings(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn quiet(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

pub(crate) type Machine = Arc<Gates<PolledByte>>;

/// The run loop's use of its gate and of its jump cache, here of one block.
pub(crate) struct Vcpu {
    pub(crate) gate: Arc<Gate<PolledByte>>,
    pub(crate) bell: PolledByte,
    gates: Machine,
    generation: u64,
    cached: Option<usize>,
}

impl Vcpu {
    pub(crate) fn new(gates: &Machine) -> Self {
        let bell = PolledByte::new();
        let gate = gates.add(bell.clone());
        Self { gate, bell, gates: Arc::clone(gates), generation: 0, cached: None }
    }

    /// In, with a jump cache of the generation it is in.
    pub(crate) fn enter(&mut self) {
        loop {
            let generation = self.gate.enter(&self.gates);
            if generation == self.generation {
                return;
            }
            self.gate.leave();
            self.cached = None;
            self.generation = generation;
        }
    }

    /// In, if its code is of the generation that it is in; whether it was.
    pub(crate) fn enters_again(&self) -> bool {
        let current = self.gate.enter(&self.gates) == self.generation;
        if !current {
            self.gate.leave();
        }
        current
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Empties the jump cache.
    pub(crate) fn forget(&mut self) {
        self.cached = None;
    }

    /// The block to run, by the jump cache or by `lookup`.
    pub(crate) fn find(&mut self, lookup: impl FnOnce() -> usize) -> usize {
        *self.cached.get_or_insert_with(lookup)
    }

    /// Runs a block that jumps to itself until a poll leaves.
    pub(crate) fn spin(&self) {
        while !self.bell.rings() {
            yield_now();
        }
    }
}

//! Models of `src/code/chunks.rs`: chunks that are freed and used again, and what the cores have
//! fetched of them. A core's fetching ahead is a copy that it keeps until it serialises; the arena's
//! lock is written down here.

use super::support::{HostCode, Vcpu, explore, pin, spawn, warm_up};
use crate::code::chunks::{ChunkId, Chunks, Serialise};
use crate::code::gate::Gates;
use crate::code::limbo::{Limbo, hurry};
use crate::code::sync::{Arc, AtomicUsize, Mutex, Ordering};

/// What a core has fetched: by chunk.
type Fetched = Arc<Mutex<[Option<u64>; 2]>>;

/// Makes the core drop what it has fetched, as `membarrier` does by an interrupt.
struct Interrupt(Fetched);

impl Serialise for Interrupt {
    fn serialise(&self) {
        *self.0.lock().expect("holds") = [None; 2];
    }
}

struct Core {
    fetched: Fetched,
}

impl Core {
    /// Runs what it fetched before, or else fetches.
    fn run(&self, host: &HostCode, chunk: usize) -> u64 {
        *self.fetched.lock().expect("holds")[chunk].get_or_insert_with(|| host.run(chunk))
    }
}

const NOWHERE: usize = 9;

struct Machine {
    host: Arc<HostCode>,
    /// The chunk that lookups find.
    current: AtomicUsize,
    limbo: Limbo<ChunkId>,
    chunks: Mutex<Chunks<Interrupt>>,
}

/// A machine whose code of version 10 is in the first of so many chunks, and its core.
fn machine(chunks: u32) -> (Arc<Machine>, Core) {
    let fetched: Fetched = Arc::new(Mutex::new([None; 2]));
    let mut chunks = Chunks::new(Interrupt(Arc::clone(&fetched)), chunks, 0);
    assert_eq!(chunks.take(), Some(ChunkId(0)));
    let machine = Machine {
        host: HostCode::new(&[10, 0]),
        current: AtomicUsize::new(0),
        limbo: Limbo::new(),
        chunks: Mutex::new(chunks),
    };
    (Arc::new(machine), Core { fetched })
}

impl Machine {
    /// Runs what a lookup finds under a guard.
    fn run(&self, core: &Core) {
        let _guard = pin();
        self.run_current(core);
    }

    fn run_current(&self, core: &Core) {
        let chunk = self.current.load(Ordering::Acquire);
        if chunk != NOWHERE {
            let version = core.run(&self.host, chunk % 16);
            assert_eq!(version, (chunk / 16 + 10) as u64, "the core runs what it fetched before");
        }
    }

    fn retire(&self, chunk: usize) {
        self.current.store(NOWHERE, Ordering::Release);
        self.limbo.retire(ChunkId(chunk as u32));
        self.limbo.let_go(pin);
    }

    /// Puts code of a version into a chunk and publishes it.
    fn put(&self, chunk: ChunkId, version: usize) {
        self.host.write(chunk.0 as usize, version as u64);
        self.current.store(16 * (version - 10) + chunk.0 as usize, Ordering::Release);
    }

    /// Puts code of a version into a chunk, if there is one.
    fn translate(&self, version: usize) {
        hurry(pin);
        let mut chunks = self.chunks.lock().expect("holds");
        for chunk in self.limbo.returned() {
            chunks.give_back(chunk);
        }
        if let Some(chunk) = chunks.take() {
            self.put(chunk, version);
        }
    }
}

/// I5: a chunk is used again when no vCPU is in it and what the core fetched of it is forgotten.
/// Threads: a vCPU that has run the code before; who retires it and writes the next into the same chunk.
/// Mutants: chunks-reused-without-serialising, chunks-serialised-before-they-are-stale.
#[test]
fn reused_code_is_fetched_anew() {
    explore(2, || {
        let (machine, core) = machine(1);
        machine.run(&core);
        let vcpu = spawn({
            let machine = Arc::clone(&machine);
            move || {
                warm_up();
                machine.run(&core);
            }
        });
        machine.retire(0);
        machine.translate(11);
        vcpu.join().expect("runs");
    });
}

/// I5, when chunks come back one after another: each time is a new one for the cores.
/// Threads: a vCPU that runs twice; who invalidates its code, waits, and writes the next into the same
/// chunk, twice.
/// Mutants: chunks-given-back-as-free, chunks-serialise-once-for-ever.
#[test]
fn code_reused_twice_is_fetched_anew() {
    explore(2, || {
        let (machine, core) = machine(1);
        let gates = Arc::new(Gates::new());
        let mut vcpu = Vcpu::new(&gates);
        let runner = spawn({
            let machine = Arc::clone(&machine);
            move || {
                for _ in 0..2 {
                    vcpu.enter();
                    machine.run_current(&core);
                    vcpu.gate.leave();
                }
            }
        });
        for version in [11, 12] {
            machine.current.store(NOWHERE, Ordering::Release);
            gates.invalidated();
            gates.wait();
            let mut chunks = machine.chunks.lock().expect("holds");
            chunks.give_back(ChunkId(0));
            machine.put(chunks.take().expect("there is one"), version);
        }
        runner.join().expect("runs");
    });
}

/// I5: no chunk has two users.
/// Threads: two that take, write and give back.
/// Mutants: chunks-stay-stale.
#[test]
fn a_chunk_has_one_user() {
    explore(2, || {
        let (machine, _core) = machine(2);
        machine.chunks.lock().expect("holds").give_back(ChunkId(0));
        let work = |mark: u64| {
            let machine = Arc::clone(&machine);
            move || {
                for _ in 0..2 {
                    let taken = machine.chunks.lock().expect("holds").take();
                    let chunk = taken.expect("two chunks for two");
                    machine.host.write(chunk.0 as usize, mark);
                    assert_eq!(machine.host.run(chunk.0 as usize), mark);
                    machine.chunks.lock().expect("holds").give_back(chunk);
                }
            }
        };
        let other = spawn(work(1));
        work(2)();
        other.join().expect("works");
        let census = machine.chunks.lock().expect("holds").census();
        assert_eq!((census.used, census.stale + census.free), (0, 2));
    });
}

//! Models of all the protocols together: a vCPU's run loop and an invalidation as the design's figure
//! has them, on the real table, gates, limbo and chunks. The run loop is written down here.

use super::support::{HostCode, REUSED, Vcpu, explore, pin, spawn, warm_up};
use crate::code::chunks::{ChunkId, Chunks, Serialise};
use crate::code::gate::Gates;
use crate::code::index::{Index, Tagged};
use crate::code::limbo::{Limbo, hurry};
use crate::code::sync::{Arc, Mutex};
use crate::code::table::{Live, Table};

const PAGE: u64 = 7;
const KEY: Tagged = Tagged { pc: 0x7000, tag: 1 };

/// Cores that fetch nothing ahead: the models of `chunks` have such.
struct Nothing;

impl Serialise for Nothing {
    fn serialise(&self) {}
}

struct Machine {
    gates: Arc<Gates<super::support::PolledByte>>,
    table: Table<usize>,
    limbo: Limbo<ChunkId>,
    chunks: Mutex<Chunks<Nothing>>,
    /// By chunk.
    host: Arc<HostCode>,
    old: Arc<Live<usize>>,
}

impl Machine {
    fn new() -> Arc<Self> {
        let mut chunks = Chunks::new(Nothing, 1, 0);
        assert_eq!(chunks.take(), Some(ChunkId(0)));
        let old = Arc::new(Live::new(Index::new(2)));
        old.index.insert(KEY, 0, &pin());
        let table = Table::new(1);
        table.insert(PAGE, Arc::clone(&old), &pin());
        Arc::new(Self {
            gates: Arc::new(Gates::new()),
            table,
            limbo: Limbo::new(),
            chunks: Mutex::new(chunks),
            host: HostCode::new(&[10]),
            old,
        })
    }

    /// One turn of the run loop. What a jump cache has is good for one stay inside, since its guard
    /// ends with that.
    fn run(&self, vcpu: &mut Vcpu) {
        vcpu.gate.settle();
        let guard = pin();
        vcpu.enter();
        if let Some(chunk) = self.table.find(PAGE, KEY, &guard) {
            assert_ne!(self.host.run(chunk), REUSED, "stale code ran");
        }
        vcpu.gate.leave();
    }

    /// Goes on in a chunk whose code has called out: under another guard, without a lookup, if nothing was
    /// invalidated meanwhile.
    fn go_on(&self, vcpu: &Vcpu, chunk: usize) {
        let _guard = pin();
        if self.gates.generation() == vcpu.generation() && vcpu.enters_again() {
            assert_ne!(self.host.run(chunk), REUSED, "code that is gone went on");
            vcpu.gate.leave();
        }
    }

    fn retire(&self) {
        let guard = pin();
        self.old.retire();
        self.table.remove(PAGE, &self.old, &guard);
        self.limbo.retire(ChunkId(0));
    }

    /// Takes the chunk for something else, if it has come back.
    fn reuse(&self) {
        self.limbo.let_go(pin);
        hurry(pin);
        let mut chunks = self.chunks.lock().expect("holds");
        for chunk in self.limbo.returned() {
            chunks.give_back(chunk);
        }
        if let Some(chunk) = chunks.take() {
            self.host.write(chunk.0 as usize, REUSED);
        }
    }
}

/// I4, I5: code retired without a wait is reused when the last guard is gone.
/// Threads: a vCPU; who invalidates and reuses.
/// Mutants: table-node-freed-at-once.
#[test]
fn code_is_reused_without_a_wait() {
    explore(2, || {
        let machine = Machine::new();
        let mut vcpu = Vcpu::new(&machine.gates);
        let runner = spawn({
            let machine = Arc::clone(&machine);
            move || {
                warm_up();
                machine.run(&mut vcpu);
            }
        });
        machine.retire();
        machine.gates.invalidated();
        machine.reuse();
        runner.join().expect("runs");
    });
}

/// I5: code that called out goes on if the generation is its own, which was counted before its memory was let go.
/// Threads: a vCPU that its code has called out of; who invalidates and reuses.
/// Mutants: limbo-lets-go-before-the-count.
#[test]
fn code_that_called_out_goes_on() {
    explore(2, || {
        let machine = Machine::new();
        let vcpu = Vcpu::new(&machine.gates);
        let runner = spawn({
            let machine = Arc::clone(&machine);
            move || {
                warm_up();
                machine.go_on(&vcpu, 0);
            }
        });
        machine.retire();
        machine.gates.invalidated();
        machine.reuse();
        runner.join().expect("runs");
    });
}

/// I4: with a wait nobody is in the old code, whatever the epoch does.
/// Threads: a vCPU that runs twice; who invalidates, waits, and writes the code's memory.
/// Mutants: gate-wait-looks-once.
#[test]
fn nobody_is_in_a_retired_region_after_wait() {
    explore(3, || {
        let machine = Machine::new();
        let mut vcpu = Vcpu::new(&machine.gates);
        let runner = spawn({
            let machine = Arc::clone(&machine);
            move || {
                machine.run(&mut vcpu);
                machine.run(&mut vcpu);
            }
        });
        machine.old.retire();
        machine.gates.invalidated();
        machine.gates.wait();
        machine.host.write(0, REUSED);
        runner.join().expect("runs");
    });
}

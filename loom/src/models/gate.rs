//! Models of `src/code/gate.rs`. Lookups are a load of one atomic here: the table has models of its
//! own.

use super::support::{HostCode, Machine, REUSED, Vcpu, explore, spawn};
use crate::code::gate::Gates;
use crate::code::sync::{Arc, AtomicUsize, Ordering};

fn gates() -> Machine {
    Arc::new(Gates::new())
}

/// The old code is block 0, the new one block 1, and lookups give `current`.
struct Code {
    host: Arc<HostCode>,
    current: AtomicUsize,
}

const OLD: usize = 0;
const NEW: usize = 1;

fn code() -> Arc<Code> {
    Arc::new(Code { host: HostCode::new(&[10, 11]), current: AtomicUsize::new(OLD) })
}

impl Code {
    /// Looked up and run as often as said.
    fn run(&self, vcpu: &mut Vcpu, times: usize) {
        for _ in 0..times {
            vcpu.gate.settle();
            vcpu.enter();
            let block = vcpu.find(|| self.current.load(Ordering::Relaxed));
            assert_ne!(self.host.run(block), REUSED, "stale code ran");
            vcpu.gate.leave();
        }
    }

    fn invalidate(&self, gates: &Machine) {
        self.current.store(NEW, Ordering::Relaxed);
        gates.invalidated();
    }

    fn invalidate_and_reuse(&self, gates: &Machine) {
        self.invalidate(gates);
        gates.wait();
        self.host.write(OLD, REUSED);
    }
}

/// I6: a request ends the run of a vCPU whose block jumps to itself.
/// Threads: the vCPU; who asks.
/// Mutants: gate-request-does-not-ring, gate-request-rings-first, gate-settle-quiets-last.
#[test]
fn no_request_is_lost() {
    explore(3, || {
        let gates = gates();
        let mut vcpu = Vcpu::new(&gates);
        let gate = Arc::clone(&vcpu.gate);
        let asker = spawn(move || gate.request());
        while !vcpu.gate.settle() {
            vcpu.enter();
            vcpu.spin();
            vcpu.gate.leave();
        }
        asker.join().expect("asks");
    });
}

/// I6: two rings that meet in one bell both reach the vCPU, the request and the invalidation.
/// Threads: the vCPU, in a block that jumps to itself; who asks; who invalidates.
/// Mutants: gate-settle-drops-requests.
#[test]
fn no_request_is_lost_between_two_ringers() {
    explore(2, || {
        let gates = gates();
        let mut vcpu = Vcpu::new(&gates);
        let gate = Arc::clone(&vcpu.gate);
        let asker = spawn(move || gate.request());
        let invalidator = spawn({
            let gates = Arc::clone(&gates);
            move || gates.invalidated()
        });
        let mut asked = false;
        loop {
            asked |= vcpu.gate.settle();
            vcpu.enter();
            if asked && vcpu.generation() == 1 {
                break;
            }
            vcpu.spin();
            vcpu.gate.leave();
        }
        vcpu.gate.leave();
        asker.join().expect("asks");
        invalidator.join().expect("invalidates");
    });
}

/// I4: after `wait` no vCPU is in old code, nor comes into it again, by a lookup or by its jump cache.
/// Threads: a vCPU that runs twice; who invalidates, waits, and writes the old code's memory.
/// Mutants: gate-enter-store-relaxed, gate-leave-relaxed, gate-wait-first-look-relaxed,
///     gate-wait-parity-wrong.
#[test]
fn nobody_is_in_old_code_after_wait() {
    explore(3, || {
        let (gates, code) = (gates(), code());
        let mut vcpu = Vcpu::new(&gates);
        let runner = spawn({
            let code = Arc::clone(&code);
            move || code.run(&mut vcpu, 2)
        });
        code.invalidate_and_reuse(&gates);
        runner.join().expect("runs");
    });
}

/// I4 with a jump cache that was filled before.
/// Threads: as above.
/// Mutants: gate-does-not-count, gate-enter-fence-weaker, gate-enter-reads-generation-first,
///     gate-wait-without-fence.
#[test]
fn a_filled_jump_cache_is_emptied() {
    explore(3, || {
        let (gates, code) = (gates(), code());
        let mut vcpu = Vcpu::new(&gates);
        code.run(&mut vcpu, 1);
        let runner = spawn({
            let code = Arc::clone(&code);
            move || code.run(&mut vcpu, 1)
        });
        code.invalidate_and_reuse(&gates);
        runner.join().expect("runs");
    });
}

/// I4, I6: without a wait, a vCPU comes out of old code soon, and its jump cache does not bring it back.
/// Threads: a vCPU in blocks that jump to themselves; who invalidates.
/// Mutants: gate-counts-relaxed, gate-rings-before-counting.
#[test]
fn an_invalidation_reaches_a_loop() {
    explore(3, || {
        let (gates, code) = (gates(), code());
        let mut vcpu = Vcpu::new(&gates);
        let invalidator = spawn({
            let (gates, code) = (Arc::clone(&gates), Arc::clone(&code));
            move || code.invalidate(&gates)
        });
        loop {
            vcpu.gate.settle();
            vcpu.enter();
            if vcpu.find(|| code.current.load(Ordering::Relaxed)) == NEW {
                break;
            }
            vcpu.spin();
            vcpu.gate.leave();
        }
        vcpu.gate.leave();
        invalidator.join().expect("invalidates");
    });
}

/// I4 for two vCPUs: all are waited for.
/// Threads: two vCPUs; who invalidates, waits, and writes the old code's memory.
/// Mutants: gate-wait-for-one.
#[test]
fn each_vcpu_is_waited_for() {
    explore(2, || {
        let (gates, code) = (gates(), code());
        let runners = [(); 2].map(|()| {
            let mut vcpu = Vcpu::new(&gates);
            let code = Arc::clone(&code);
            spawn(move || code.run(&mut vcpu, 1))
        });
        code.invalidate_and_reuse(&gates);
        for runner in runners {
            runner.join().expect("runs");
        }
    });
}

/// I4 for two that invalidate: each may write its old code after its own wait.
/// Threads: a vCPU that runs twice; two that invalidate one after the other or at once.
/// Mutants: gate-wait-relaxed.
#[test]
fn two_may_invalidate() {
    explore(2, || {
        let (gates, first, second) = (gates(), code(), code());
        let mut vcpu = Vcpu::new(&gates);
        let runner = spawn({
            let (first, second) = (Arc::clone(&first), Arc::clone(&second));
            move || {
                first.run(&mut vcpu, 1);
                vcpu.forget();
                second.run(&mut vcpu, 1);
            }
        });
        let other = spawn({
            let (gates, first) = (Arc::clone(&gates), Arc::clone(&first));
            move || first.invalidate_and_reuse(&gates)
        });
        second.invalidate_and_reuse(&gates);
        other.join().expect("invalidates");
        runner.join().expect("runs");
    });
}

/// I4 for a vCPU that is made, runs and goes during an invalidation.
/// Threads: the vCPU's; who invalidates, waits, and writes the old code's memory.
/// Mutants: gate-enter-without-fence.
#[test]
fn a_vcpu_comes_and_goes() {
    explore(3, || {
        let (gates, code) = (gates(), code());
        let runner = spawn({
            let (gates, code) = (Arc::clone(&gates), Arc::clone(&code));
            move || {
                let mut vcpu = Vcpu::new(&gates);
                code.run(&mut vcpu, 1);
                gates.remove(&vcpu.gate);
            }
        });
        code.invalidate_and_reuse(&gates);
        runner.join().expect("runs");
    });
}

/// I4: a vCPU that is made during an invalidation finds the new code, or is rung.
/// Threads: the vCPU's, in blocks that jump to themselves; who invalidates.
/// Mutants: gate-does-not-ring.
#[test]
fn a_new_vcpu_is_rung() {
    explore(3, || {
        let (gates, code) = (gates(), code());
        let invalidator = spawn({
            let (gates, code) = (Arc::clone(&gates), Arc::clone(&code));
            move || code.invalidate(&gates)
        });
        let mut vcpu = Vcpu::new(&gates);
        loop {
            vcpu.gate.settle();
            vcpu.enter();
            if vcpu.find(|| code.current.load(Ordering::Relaxed)) == NEW {
                break;
            }
            vcpu.spin();
            vcpu.gate.leave();
        }
        vcpu.gate.leave();
        invalidator.join().expect("invalidates");
    });
}

/// I4: of two invalidations at once, each is one that jump caches see.
/// Threads: a vCPU that runs twice; who invalidates other code; who invalidates, waits, and writes the
/// old code's memory.
/// Mutants: gate-count-is-not-atomic.
#[test]
fn two_invalidations_count_twice() {
    explore(2, || {
        let (gates, code) = (gates(), code());
        let mut vcpu = Vcpu::new(&gates);
        let runner = spawn({
            let code = Arc::clone(&code);
            move || code.run(&mut vcpu, 2)
        });
        let other = spawn({
            let gates = Arc::clone(&gates);
            move || gates.invalidated()
        });
        code.invalidate_and_reuse(&gates);
        other.join().expect("invalidates");
        runner.join().expect("runs");
    });
}

/// I4: a vCPU that goes takes its own gate with it, not another's.
/// Threads: a vCPU that runs; one that goes; who invalidates, waits, and writes the old code's memory.
/// Mutants: gate-remove-takes-another.
#[test]
fn one_goes_while_another_runs() {
    explore(2, || {
        let (gates, code) = (gates(), code());
        let (mut stays, goes) = (Vcpu::new(&gates), Vcpu::new(&gates));
        let runner = spawn({
            let code = Arc::clone(&code);
            move || code.run(&mut stays, 1)
        });
        let leaver = spawn({
            let gates = Arc::clone(&gates);
            move || gates.remove(&goes.gate)
        });
        code.invalidate_and_reuse(&gates);
        runner.join().expect("runs");
        leaver.join().expect("goes");
    });
}

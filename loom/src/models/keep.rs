//! Models of `src/code/keep.rs`: hooks of one machine, each a number that counts its calls.

use super::support::{Machine, Vcpu, explore, spawn};
use crate::code::gate::{Bell, Gates};
use crate::code::keep::{Keepable, Kept};
use crate::code::sync::{Arc, AtomicBool, FairMutex, LockArc, Ordering, yield_now};

type Hook = Keepable<u32>;

fn hook() -> Arc<Hook> {
    Arc::new(Keepable::new(LockArc::new(FairMutex::new(0))))
}

fn call(hook: &Hook, kept: &mut Option<Kept<u32>>, gates: &Machine) {
    hook.with(kept, || gates.ring(), |calls| *calls += 1);
}

/// Guest code that calls `hook` once and then jumps to itself until it is rung out, or comes to its end.
fn run(vcpu: &mut Vcpu, hook: &Hook, gates: &Machine, end: &AtomicBool) {
    let mut kept = None;
    vcpu.gate.settle();
    call(hook, &mut kept, gates);
    vcpu.enter();
    while !vcpu.bell.rings() && !end.load(Ordering::Relaxed) {
        yield_now();
    }
    vcpu.gate.leave();
}

/// I6: who wants the lock of a hook gets it, though the vCPU that keeps it never calls the hook again.
/// Threads: a vCPU in two runs; another's call of the hook, behind which the guest ends.
/// Mutants: keep-rings-nobody, keep-rings-first.
#[test]
fn nobody_waits_for_a_kept_lock() {
    explore(3, || {
        let (gates, hook) = (Arc::new(Gates::new()), hook());
        let mut vcpu = Vcpu::new(&gates);
        let end = Arc::new(AtomicBool::new(false));
        let runner = spawn({
            let (gates, hook, end) = (Arc::clone(&gates), Arc::clone(&hook), Arc::clone(&end));
            move || {
                run(&mut vcpu, &hook, &gates, &end);
                run(&mut vcpu, &hook, &gates, &end);
            }
        });
        call(&hook, &mut None, &gates);
        end.store(true, Ordering::Relaxed);
        runner.join().expect("runs");
    });
}

/// I6: two vCPUs that call two hooks in turns wait for each other only while one is called.
/// Threads: the two.
/// Mutants: keep-waits-with-another.
#[test]
fn nobody_keeps_one_lock_and_waits_for_another() {
    explore(3, || {
        let (gates, hooks) = (Arc::new(Gates::new()), [hook(), hook()]);
        let other = spawn({
            let (gates, hooks) = (Arc::clone(&gates), hooks.clone());
            move || {
                let mut kept = None;
                call(&hooks[1], &mut kept, &gates);
                call(&hooks[0], &mut kept, &gates);
            }
        });
        let mut kept = None;
        call(&hooks[0], &mut kept, &gates);
        call(&hooks[1], &mut kept, &gates);
        drop(kept);
        other.join().expect("calls");
    });
}

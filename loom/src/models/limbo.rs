//! Models of `src/code/limbo.rs`.

use super::support::{HostCode, REUSED, explore, pin, spawn, warm_up};
use crate::code::limbo::{Limbo, hurry};
use crate::code::sync::{Arc, AtomicBool, AtomicUsize, Ordering, yield_now};

/// I5: a thing does not come back while a guard of its time lives.
/// Threads: a reader under a guard; who takes the thing away, retires it, and reuses it.
/// Mutants: limbo-returns-at-once.
#[test]
fn nothing_comes_back_under_a_guard() {
    explore(2, || {
        let (host, current) = (HostCode::new(&[10]), Arc::new(AtomicBool::new(true)));
        let reader = spawn({
            let (host, current) = (Arc::clone(&host), Arc::clone(&current));
            move || {
                warm_up();
                let _guard = pin();
                if current.load(Ordering::Acquire) {
                    assert_ne!(host.run(0), REUSED);
                }
            }
        });
        let limbo = Limbo::new();
        current.store(false, Ordering::Release);
        limbo.retire(0_usize);
        limbo.let_go(pin);
        hurry(pin);
        for block in limbo.returned() {
            host.write(block, REUSED);
        }
        reader.join().expect("reads");
    });
}

/// I5: what one thread retires comes back to another that lets time go on, though the first goes nowhere.
/// Threads: who retires, settles, then waits; who hurries.
/// Mutants: limbo-counts-wrong, limbo-hurries-too-little, limbo-keeps-to-its-thread.
#[test]
fn what_is_retired_comes_back_elsewhere() {
    explore(2, || {
        let limbo = Arc::new(Limbo::new());
        let stages = Arc::new(AtomicUsize::new(0));
        let retirer = spawn({
            let (limbo, stages) = (Arc::clone(&limbo), Arc::clone(&stages));
            move || {
                let guard = pin();
                limbo.retire(5_u32);
                limbo.let_go(pin);
                limbo.settle(&guard);
                drop(guard);
                stages.store(1, Ordering::Release);
                while stages.load(Ordering::Acquire) != 2 {
                    yield_now();
                }
            }
        });
        while stages.load(Ordering::Acquire) != 1 {
            yield_now();
        }
        hurry(pin);
        assert_eq!(limbo.returned(), [5]);
        assert_eq!(limbo.count(), 0);
        stages.store(2, Ordering::Release);
        retirer.join().expect("retires");
    });
}

/// I5: each thing comes back once, whoever asks.
/// Threads: two that retire one thing each, hurry, and ask.
/// Mutants: limbo-forgets.
#[test]
fn each_thing_comes_back_once() {
    explore(1, || {
        let limbo = Arc::new(Limbo::new());
        let taken = Arc::new(AtomicUsize::new(0));
        let work = |thing: usize| {
            let (limbo, taken) = (Arc::clone(&limbo), Arc::clone(&taken));
            move || {
                limbo.retire(thing);
                limbo.let_go(pin);
                hurry(pin);
                for thing in limbo.returned() {
                    taken.fetch_add(thing, Ordering::Relaxed);
                }
            }
        };
        let other = spawn(work(1));
        work(16)();
        other.join().expect("retires");
        // The other thread is not quite gone yet, and may be pinned.
        while limbo.count() > 0 {
            yield_now();
            hurry(pin);
            for thing in limbo.returned() {
                taken.fetch_add(thing, Ordering::Relaxed);
            }
        }
        assert_eq!(taken.load(Ordering::Relaxed), 17);
    });
}

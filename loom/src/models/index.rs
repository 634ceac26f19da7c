//! Models of `src/code/index.rs`. Its writers are one at a time: one thread here.

use super::support::{HostCode, REUSED, explore, pin, spawn, warm_up};
use crate::code::index::{Index, Tagged};
use crate::code::limbo::{Limbo, hurry};
use crate::code::sync::{Arc, AtomicBool, Ordering};
use crate::poison::POISON;

fn key(pc: u64) -> Tagged {
    Tagged { pc, tag: 1 }
}

/// I8: an entry is found whole, with the code that was written before it was put in.
/// Threads: a reader; a writer of one entry.
/// Mutants: index-entry-read-relaxed.
#[test]
fn an_entry_is_published_whole() {
    explore(3, || {
        let (index, host) = (Arc::new(Index::new(4)), HostCode::new(&[0]));
        let reader = spawn({
            let (index, host) = (Arc::clone(&index), Arc::clone(&host));
            move || {
                if let Some(block) = index.find(key(1), &pin()) {
                    assert_eq!(host.run(block), 10);
                }
            }
        });
        host.write(0, 10);
        index.insert(key(1), 0, &pin());
        reader.join().expect("reads");
    });
}

/// I5, I9: growth hides no entry, nor is the smaller array freed under a reader.
/// Threads: a reader; a writer whose entry does not fit, and who lets the epoch go on.
/// Mutants: index-array-freed-at-once, index-array-published-empty,
///     index-array-published-relaxed, index-array-read-relaxed, index-growth-loses-the-last.
#[test]
fn growth_hides_nothing() {
    explore(2, || {
        let index = Arc::new(Index::new(2));
        index.insert(key(1), 10_usize, &pin());
        let reader = spawn({
            let index = Arc::clone(&index);
            move || {
                warm_up();
                assert_eq!(index.find(key(1), &pin()), Some(10));
            }
        });
        index.insert(key(2), 11, &pin());
        hurry(pin);
        assert_eq!(index.find(key(2), &pin()), Some(11));
        reader.join().expect("reads");
    });
}

/// I5: growth frees the entries of invalidated blocks when no reader can be at them, be there ever so many
/// (a bag of the epoch's holds four under loom).
/// Threads: a reader, who also lets the epoch go on; a writer who invalidates, then grows.
/// Mutants: index-dead-freed-at-once, index-dead-retired-before-the-swap.
#[test]
fn growth_frees_no_entry_in_use() {
    explore(2, || {
        const BLOCKS: u64 = 5;
        let index = Arc::new(Index::new(16));
        for block in 0..8 {
            let pc = if block == 0 { POISON } else { block };
            index.insert(key(pc), block, &pin());
        }
        for block in 0..=BLOCKS {
            let pc = if block == 0 { POISON } else { block };
            index.invalidate(key(pc), &pin());
        }
        let reader = spawn({
            let index = Arc::clone(&index);
            move || {
                pin().flush();
                assert_eq!(index.find(key(POISON), &pin()), None);
            }
        });
        warm_up();
        index.insert(key(8), 8, &pin());
        hurry(pin);
        reader.join().expect("reads");
    });
}

/// I4 for one block: once it is invalidated no lookup finds it, and its code can go when the guards of
/// that time are gone.
/// Threads: a reader, twice; who invalidates and gives the code's memory to something else.
/// Mutants: index-tag-ignored.
#[test]
fn an_invalidated_block_is_not_found() {
    explore(2, || {
        let (index, host) = (Arc::new(Index::new(4)), HostCode::new(&[10]));
        index.insert(key(1), 0, &pin());
        let done = Arc::new(AtomicBool::new(false));
        let reader = spawn({
            let (index, host, done) = (Arc::clone(&index), Arc::clone(&host), Arc::clone(&done));
            move || {
                warm_up();
                let after = done.load(Ordering::Acquire);
                let guard = pin();
                if let Some(block) = index.find(key(1), &guard) {
                    assert!(!after, "found after it was invalidated");
                    assert_ne!(host.run(block), REUSED);
                }
            }
        });
        let limbo = Limbo::new();
        {
            let guard = pin();
            let block = index.invalidate(key(1), &guard).expect("is there");
            done.store(true, Ordering::Release);
            limbo.retire(block);
            limbo.let_go(pin);
        }
        hurry(pin);
        for block in limbo.returned() {
            host.write(block, REUSED);
        }
        assert_eq!(index.invalidate(key(1), &pin()), None, "it is gone already");
        reader.join().expect("reads");
    });
}

/// I4, I9: a block that was invalidated is translated anew beside its old entry, which stays dead, also when
/// the index grows.
/// Threads: a reader; a writer.
/// Mutants: index-growth-keeps-the-dead.
#[test]
fn a_block_translated_anew_is_found() {
    explore(2, || {
        let index = Arc::new(Index::new(4));
        index.insert(key(1), 10_usize, &pin());
        let reader = spawn({
            let index = Arc::clone(&index);
            move || {
                let first = index.find(key(1), &pin());
                let second = index.find(key(1), &pin());
                assert!(first < Some(11) || second == Some(11), "{first:?}, then {second:?}");
            }
        });
        let guard = pin();
        index.invalidate(key(1), &guard);
        index.insert(key(1), 11, &guard);
        index.insert(key(2), 12, &guard);
        drop(guard);
        reader.join().expect("reads");
        assert_eq!(index.find(key(1), &pin()), Some(11));
    });
}

/// I9: a block that was invalidated and comes back is found again, in the entry that it had.
/// Threads: a reader; a writer.
/// Mutants: index-revive-stores-nothing.
#[test]
fn a_block_that_comes_back_is_found() {
    explore(2, || {
        let index = Arc::new(Index::new(4));
        index.insert(key(1), 10_usize, &pin());
        let reader = spawn({
            let index = Arc::clone(&index);
            move || {
                let found = index.find(key(1), &pin());
                assert!(found.is_none_or(|block| block == 10), "{found:?}");
            }
        });
        let guard = pin();
        index.invalidate(key(1), &guard);
        assert!(!index.revive(key(1), 11, &guard), "it never had this block");
        assert!(index.revive(key(1), 10, &guard), "its entry is there");
        assert!(!index.revive(key(1), 10, &guard), "it is not dead any more");
        drop(guard);
        reader.join().expect("reads");
        assert_eq!(index.find(key(1), &pin()), Some(10));
    });
}

//! An allocator that makes a use after free visible: what is freed is filled with [`POISON`] and not
//! handed out again for a long time. Loom tracks its own cells only; the nodes, entries and arrays of
//! the real files are plain memory to it. An atomic of loom's that is read in freed memory names an
//! object that does not exist, and loom panics.
#![allow(unsafe_code, reason = "is an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a freed `u64` reads as. A model that looks a freed entry up uses it as guest address, so that
/// the lookup does not stop at the address but reads the tag, which panics.
pub(crate) const POISON: u64 = 0xdddd_dddd_dddd_dddd;

/// Blocks kept back. One execution of a model frees fewer of them.
const KEPT: usize = 1 << 14;
/// Bigger blocks are freed at once: the protocols have none.
const BIGGEST: usize = 512;

struct Kept {
    blocks: [(*mut u8, Layout); KEPT],
    next: usize,
}

struct Poisoning {
    busy: AtomicBool,
    kept: UnsafeCell<Kept>,
}

// SAFETY: `kept` is touched while `busy` is held.
unsafe impl Sync for Poisoning {}

#[global_allocator]
static ALLOCATOR: Poisoning = Poisoning {
    busy: AtomicBool::new(false),
    kept: UnsafeCell::new(Kept { blocks: [(ptr::null_mut(), Layout::new::<u8>()); KEPT], next: 0 }),
};

// SAFETY: hands out what the system's allocator does, and gives that back later.
unsafe impl GlobalAlloc for Poisoning {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let mut freed = (block, layout);
        // SAFETY: the block is ours until it is given back below; `kept` is this thread's while
        // `busy`.
        unsafe {
            if layout.size() <= BIGGEST {
                ptr::write_bytes(block, POISON as u8, layout.size());
                while self.busy.swap(true, Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                let kept = &mut *self.kept.get();
                std::mem::swap(&mut kept.blocks[kept.next % KEPT], &mut freed);
                kept.next += 1;
                self.busy.store(false, Ordering::Release);
            }
            if !freed.0.is_null() {
                System.dealloc(freed.0, freed.1);
            }
        }
    }
}

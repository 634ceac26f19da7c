//! [`Table`]: from a guest page to the translation region it lies in. Read by any thread without a
//! lock, changed by one at a time.
//!
//! A region is retired by one store, to its own flag; then its pages are taken out one by one, and a
//! new region can take their place. A lookup that starts after the store finds nothing in the old
//! region (I7), and what it has found before stays valid as long as its guard lives.
#![allow(unsafe_code, reason = "follows pointers that an epoch guards")]

use super::index::{Index, Tagged};
use super::sync::{Arc, Atomic, AtomicBool, Guard, Hint, Ordering, Owned, unprotected};

/// What lookups see of a region.
#[derive(Debug)]
pub(crate) struct Live<V: Copy + Send + Sync + 'static> {
    alive: AtomicBool,
    /// A lookup has come here.
    pub(crate) used: Hint,
    pub(crate) index: Index<V>,
}

impl<V: Copy + Send + Sync + 'static> Live<V> {
    /// An empty region.
    pub(crate) fn new(index: Index<V>) -> Self {
        Self { alive: AtomicBool::new(true), used: Hint::default(), index }
    }

    /// No lookup that starts from here on finds anything in it.
    pub(crate) fn retire(&self) {
        self.alive.store(false, Ordering::Release);
    }
}

#[derive(Debug)]
struct Node<V: Copy + Send + Sync + 'static> {
    page: u64,
    region: Arc<Live<V>>,
    next: Atomic<Node<V>>,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Table<V: Copy + Send + Sync + 'static> {
    /// By the low bits of a page's number: a list of nodes.
    buckets: Box<[Atomic<Node<V>>]>,
}

impl<V: Copy + Send + Sync + 'static> Table<V> {
    /// A table with `buckets` lists, a power of two.
    pub(crate) fn new(buckets: usize) -> Self {
        Self { buckets: (0..buckets).map(|_| Atomic::null()).collect() }
    }

    fn bucket(&self, page: u64) -> &Atomic<Node<V>> {
        &self.buckets[page as usize & (self.buckets.len() - 1)]
    }

    /// The value of the block with this key, whose address lies in `page`.
    pub(crate) fn find(&self, page: u64, key: Tagged, guard: &Guard) -> Option<V> {
        let mut next = self.bucket(page).load(Ordering::Acquire, guard);
        // SAFETY: nodes are freed through the epoch, or by `drop`.
        while let Some(node) = unsafe { next.as_ref() } {
            if node.page == page && node.region.alive.load(Ordering::Acquire) {
                node.region.used.set();
                return node.region.index.find(key, guard);
            }
            next = node.next.load(Ordering::Acquire, guard);
        }
        None
    }

    /// From now on `page` lies in `region`. It lies in no other that is alive. One thread at a time.
    pub(crate) fn insert(&self, page: u64, region: Arc<Live<V>>, guard: &Guard) {
        let bucket = self.bucket(page);
        let node = Owned::new(Node { page, region, next: Atomic::null() });
        node.next.store(bucket.load(Ordering::Relaxed, guard), Ordering::Relaxed);
        bucket.store(node, Ordering::Release);
    }

    /// Takes `page` out of `region`. One thread at a time.
    pub(crate) fn remove(&self, page: u64, region: &Arc<Live<V>>, guard: &Guard) {
        let mut link = self.bucket(page);
        loop {
            let this = link.load(Ordering::Relaxed, guard);
            // SAFETY: as in `find`.
            let Some(node) = (unsafe { this.as_ref() }) else { return };
            if node.page == page && Arc::ptr_eq(&node.region, region) {
                // A reader at the node goes on along its own link, which stays.
                link.store(node.next.load(Ordering::Relaxed, guard), Ordering::Release);
                // SAFETY: no reader that comes now finds it.
                unsafe { guard.defer_destroy(this) };
                return;
            }
            link = &node.next;
        }
    }
}

impl<V: Copy + Send + Sync + 'static> Drop for Table<V> {
    fn drop(&mut self) {
        // SAFETY: nobody else has the table.
        let guard = unsafe { unprotected() };
        for bucket in &self.buckets {
            let mut next = bucket.load(Ordering::Relaxed, guard);
            while !next.is_null() {
                // SAFETY: its nodes are its own.
                let node = unsafe { next.into_owned() };
                next = node.next.load(Ordering::Relaxed, guard);
            }
        }
    }
}

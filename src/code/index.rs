//! [`Index`]: the blocks of a region by key. Read by any thread without a lock, changed by one at a
//! time.
//!
//! Each entry has a *tag*, the flags of a vCPU's mode that its block was translated for. To invalidate
//! one block is to store [`IMPOSSIBLE`] there, which no vCPU's mode is: one store, whoever looks and
//! however many jumps lead to it. The entry stays until the index grows.
//!
//! An entry is published whole, by a release store of its pointer; a bigger array is filled before it
//! takes the smaller one's place; what was replaced is freed when no reader can be in it.
#![allow(unsafe_code, reason = "follows pointers that an epoch guards")]

use super::sync::{Atomic, AtomicU32, AtomicUsize, Guard, Ordering, Owned, Shared, unprotected};

/// The mode of a vCPU without long mode in 64-bit code: none has it.
pub(crate) const IMPOSSIBLE: u32 = 0;

/// What a block is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tagged {
    /// Guest address of its first instruction.
    pub(crate) pc: u64,
    /// Flags of the mode that it was translated for.
    pub(crate) tag: u32,
}

#[derive(Debug)]
struct Entry<V> {
    pc: u64,
    tag: AtomicU32,
    value: V,
}

/// A power of two of places; an entry is at the first free one from its hash on.
#[derive(Debug)]
struct Places<V> {
    all: Box<[Atomic<Entry<V>>]>,
    /// How many are taken; at most half. Its writer alone looks.
    taken: AtomicUsize,
}

impl<V> Places<V> {
    fn new(size: usize) -> Self {
        Self { all: (0..size).map(|_| Atomic::null()).collect(), taken: AtomicUsize::new(0) }
    }

    /// The places where a key may be, in order.
    fn from(&self, pc: u64) -> impl Iterator<Item = &Atomic<Entry<V>>> {
        let mask = self.all.len() - 1;
        // Multiplication by 2^64 over the golden ratio mixes the low bits into the high ones.
        let start = (pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
        (0..self.all.len()).map(move |step| &self.all[start.wrapping_add(step) & mask])
    }

    /// Puts an entry in, if that leaves half of the places free.
    fn put(&self, pc: u64, entry: Shared<'_, Entry<V>>, guard: &Guard) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        if 2 * (taken + 1) > self.all.len() {
            return false;
        }
        self.taken.store(taken + 1, Ordering::Relaxed);
        let free = self.from(pc).find(|place| place.load(Ordering::Relaxed, guard).is_null());
        free.expect("half of the places are free").store(entry, Ordering::Release);
        true
    }
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Index<V: Send + Sync + 'static> {
    places: Atomic<Places<V>>,
}

impl<V: Copy + Send + Sync + 'static> Index<V> {
    /// An index that grows beyond `size` places, a power of two.
    pub(crate) fn new(size: usize) -> Self {
        Self { places: Atomic::new(Places::new(size)) }
    }

    /// The value of the block with this key.
    pub(crate) fn find(&self, key: Tagged, guard: &Guard) -> Option<V> {
        self.entry(key, guard).map(|entry| entry.value)
    }

    fn entry<'guard>(&self, key: Tagged, guard: &'guard Guard) -> Option<&'guard Entry<V>> {
        // SAFETY: never null; freed by `insert` through the epoch, or by `drop`.
        let places = unsafe { self.places.load(Ordering::Acquire, guard).deref() };
        for place in places.from(key.pc) {
            // SAFETY: as above.
            let entry = unsafe { place.load(Ordering::Acquire, guard).as_ref() }?;
            if entry.pc == key.pc && entry.tag.load(Ordering::Acquire) == key.tag {
                return Some(entry);
            }
        }
        None
    }

    /// Makes `value` the block with this key, which has none. One thread at a time.
    pub(crate) fn insert(&self, key: Tagged, value: V, guard: &Guard) {
        let entry = Owned::new(Entry { pc: key.pc, tag: AtomicU32::new(key.tag), value });
        let entry = entry.into_shared(guard);
        // SAFETY: as in `entry`.
        let places = unsafe { self.places.load(Ordering::Relaxed, guard).deref() };
        if !places.put(key.pc, entry, guard) {
            self.grow(places, (key.pc, entry), guard);
        }
    }

    /// Puts a bigger array with the living entries and `new` in the place of `old`.
    fn grow(&self, old: &Places<V>, new: (u64, Shared<'_, Entry<V>>), guard: &Guard) {
        let (mut living, mut dead) = (vec![new], Vec::new());
        for place in &old.all {
            let entry = place.load(Ordering::Relaxed, guard);
            // SAFETY: as in `entry`.
            let Some(there) = (unsafe { entry.as_ref() }) else { continue };
            if there.tag.load(Ordering::Relaxed) == IMPOSSIBLE {
                dead.push(entry);
            } else {
                living.push((there.pc, entry));
            }
        }
        let bigger = Places::new((living.len() * 4).next_power_of_two());
        for (pc, entry) in living {
            bigger.put(pc, entry, guard);
        }
        let before = self.places.swap(Owned::new(bigger), Ordering::AcqRel, guard);
        // Not earlier: a reader that comes before the swap, though later than this guard, may be at a
        // dead entry when the epoch's time for what was deferred by then is over.
        for entry in dead {
            // SAFETY: no reader that comes now finds it.
            unsafe { guard.defer_destroy(entry) };
        }
        // SAFETY: as above. Its entries are not its own.
        unsafe { guard.defer_destroy(before) };
    }

    /// Makes the block with this key one that no lookup finds; its value, if there was one. One thread
    /// at a time.
    pub(crate) fn invalidate(&self, key: Tagged, guard: &Guard) -> Option<V> {
        let entry = self.entry(key, guard)?;
        entry.tag.store(IMPOSSIBLE, Ordering::Release);
        Some(entry.value)
    }
}

impl<V: Send + Sync + 'static> Drop for Index<V> {
    fn drop(&mut self) {
        // SAFETY: nobody else has the index; what it points at is its own.
        unsafe {
            let guard = unprotected();
            let places = self.places.load(Ordering::Relaxed, guard).into_owned();
            for place in &places.all {
                let entry = place.load(Ordering::Relaxed, guard);
                if !entry.is_null() {
                    drop(entry.into_owned());
                }
            }
        }
    }
}

impl<V: Copy + PartialEq + Send + Sync + 'static> Index<V> {
    /// Makes `value` the block with this key, which has none, in the entry that it had when it was
    /// invalidated; whether that is there still. So a block that goes and comes back leaves nothing
    /// behind that lookups have to pass. One thread at a time.
    pub(crate) fn revive(&self, key: Tagged, value: V, guard: &Guard) -> bool {
        // SAFETY: as in `entry`.
        let places = unsafe { self.places.load(Ordering::Relaxed, guard).deref() };
        for place in places.from(key.pc) {
            // SAFETY: as in `entry`.
            let Some(entry) = (unsafe { place.load(Ordering::Relaxed, guard).as_ref() }) else {
                return false;
            };
            let dead = entry.tag.load(Ordering::Relaxed) == IMPOSSIBLE;
            if dead && entry.pc == key.pc && entry.value == value {
                // Pairs with the load of `entry`: what was done to the block is seen by who finds it.
                entry.tag.store(key.tag, Ordering::Release);
                return true;
            }
        }
        false
    }
}

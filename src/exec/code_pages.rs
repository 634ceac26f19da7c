//! [`CodePages`]: how writes to pages that code was translated from are noticed.
//!
//! A page is *watched* at first: the host protects it, a write faults, and its code goes. Where that
//! happens often the page is *checked* instead: it can be written, and its blocks compare their source
//! bytes whenever they are entered. Each vCPU counts entries of such blocks; when enough have gone by it
//! looks at the page of the one in hand ([`CodePages::is_calm`]). A page on which nothing has changed
//! from one look to the next is watched again, which takes more looks each time it turns out rash.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::memory::PageId;

/// Writes to a page's code after which its blocks check themselves.
const WRITES_UNTIL_CHECKED: u32 = 4;
/// Looks without a change after which the most restless page is watched again.
const MOST_PATIENCE: u32 = 1 << 10;

/// What is known of a page whose code was written.
#[derive(Clone, Copy, Debug)]
struct Written {
    /// Faults that writes have cost.
    writes: u32,
    checked: bool,
    /// Looks in a row that found nothing changed, …
    quiet: u32,
    /// … and how many it takes.
    patience: u32,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct CodePages {
    watched: FxHashSet<PageId>,
    written: FxHashMap<PageId, Written>,
}

impl CodePages {
    pub(super) fn is_checked(&self, page: PageId) -> bool {
        self.written.get(&page).is_some_and(|written| written.checked)
    }

    /// How many pages are checked.
    pub(super) fn checked(&self) -> usize {
        self.written.values().filter(|written| written.checked).count()
    }

    /// Whether there may be code of the page.
    pub(super) fn has_code(&self, page: PageId) -> bool {
        self.watched.contains(&page) || self.is_checked(page)
    }

    /// Whether a write to the page's code was seen. Such a page is a region of its own, so that the next
    /// one costs no other.
    pub(super) fn was_written(&self, page: PageId) -> bool {
        !self.written.is_empty() && self.written.contains_key(&page)
    }

    /// Notes that the host watches a page …
    pub(super) fn watch(&mut self, page: PageId) {
        self.watched.insert(page);
    }

    /// … or does not.
    pub(super) fn unwatch(&mut self, page: PageId) {
        self.watched.remove(&page);
    }

    /// The pages that were watched; none is from now on.
    pub(super) fn take_watched(&mut self) -> FxHashSet<PageId> {
        std::mem::take(&mut self.watched)
    }

    /// A write to a watched page has faulted.
    pub(super) fn note_write(&mut self, page: PageId) {
        let new = Written { writes: 0, checked: false, quiet: 0, patience: 1 };
        let written = self.written.entry(page).or_insert(new);
        written.writes += 1;
        written.quiet = 0;
        written.checked |= written.writes >= WRITES_UNTIL_CHECKED;
    }

    /// A block of a checked page was found changed, or the page was written otherwise.
    pub(super) fn note_change(&mut self, page: PageId) {
        if let Some(written) = self.written.get_mut(&page) {
            written.quiet = 0;
        }
    }

    /// A look at a page that may be checked: whether it has been calm for so long that it is not any
    /// more.
    pub(super) fn is_calm(&mut self, page: PageId) -> bool {
        let Some(written) = self.written.get_mut(&page).filter(|written| written.checked) else {
            return false;
        };
        written.quiet += 1;
        if written.quiet <= written.patience {
            return false;
        }
        written.checked = false;
        // One more write, and it is checked again.
        written.writes = WRITES_UNTIL_CHECKED - 1;
        written.patience = (2 * written.patience).min(MOST_PATIENCE);
        true
    }

    /// Forgets what was written.
    pub(super) fn forget_writes(&mut self) {
        self.written.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};
    use crate::memory::AddressSpace;

    fn page() -> PageId {
        let mut memory = AddressSpace::new(32).unwrap();
        let range = GuestRange::new(GuestAddress(0), PAGE_SIZE).unwrap();
        memory.map(range, Permissions::ReadExecute).unwrap();
        memory.page_at(GuestAddress(0)).unwrap()
    }

    #[test]
    fn calm_takes_longer_each_time() {
        let (page, mut pages) = (page(), CodePages::default());
        (1..WRITES_UNTIL_CHECKED).for_each(|_| pages.note_write(page));
        assert!(!pages.is_checked(page));
        for patience in [1, 2, 4, 8] {
            pages.note_write(page);
            assert!(pages.is_checked(page) && pages.checked() == 1);
            (0..patience).for_each(|_| assert!(!pages.is_calm(page)));
            // A change, and it all begins again.
            pages.note_change(page);
            (0..patience).for_each(|_| assert!(!pages.is_calm(page)));
            assert!(pages.is_calm(page) && !pages.is_checked(page));
            assert!(!pages.is_calm(page));
        }
    }
}

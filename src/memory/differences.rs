//! Where two states of the books differ.

use super::books::{Books, Mapping, span};
use crate::guest::{GuestAddress, GuestRange};

/// A range in which two books differ, each having one mapping or none for all of it.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    pub(super) range: GuestRange,
    pub(super) now: Option<Mapping>,
    pub(super) then: Option<Mapping>,
}

/// The ranges in which `now` and `then` differ, in order of address.
pub(super) fn differences(now: &Books, then: &Books) -> Vec<Difference> {
    let mut differences = Vec::new();
    let (mut now, mut then) = (Cursor::new(now.iter()), Cursor::new(then.iter()));
    while let Some((start, last)) = next_stretch(&now, &then) {
        let (here, there) = (now.covering(start), then.covering(start));
        if !same(here, there, start) {
            differences.push(Difference {
                range: span(start, last),
                now: here.map(|mapping| mapping.part(start, last)),
                then: there.map(|mapping| mapping.part(start, last)),
            });
        }
        now.advance_past(last);
        then.advance_past(last);
    }
    differences
}

/// The next addresses that each side covers with one mapping or not at all, and one side does.
fn next_stretch<'a, I: Iterator<Item = &'a Mapping>>(
    now: &Cursor<'a, I>,
    then: &Cursor<'a, I>,
) -> Option<(GuestAddress, GuestAddress)> {
    let start = now.start().into_iter().chain(then.start()).min()?;
    let last = now.end_of_stretch(start).into_iter().chain(then.end_of_stretch(start)).min()?;
    Some((start, last))
}

fn same(now: Option<&Mapping>, then: Option<&Mapping>, at: GuestAddress) -> bool {
    match (now, then) {
        (Some(now), Some(then)) => {
            now.permissions == then.permissions && now.page_at(at) == then.page_at(at)
        }
        (None, None) => true,
        _ => false,
    }
}

/// The mappings of one side that are not yet compared.
struct Cursor<'a, I> {
    mappings: I,
    current: Option<&'a Mapping>,
    /// Addresses below are compared.
    from: GuestAddress,
}

impl<'a, I: Iterator<Item = &'a Mapping>> Cursor<'a, I> {
    fn new(mut mappings: I) -> Self {
        let current = mappings.next();
        Self { mappings, current, from: GuestAddress(0) }
    }

    /// The next address that is mapped.
    fn start(&self) -> Option<GuestAddress> {
        self.current.map(|mapping| mapping.range.start().max(self.from))
    }

    /// The last address up to which things are as at `start`.
    fn end_of_stretch(&self, start: GuestAddress) -> Option<GuestAddress> {
        let current = self.current?;
        let begins = current.range.start();
        Some(if begins > start { GuestAddress(begins.0 - 1) } else { current.range.last() })
    }

    fn covering(&self, start: GuestAddress) -> Option<&'a Mapping> {
        self.current.filter(|mapping| mapping.range.contains(start))
    }

    fn advance_past(&mut self, last: GuestAddress) {
        if self.current.is_some_and(|mapping| mapping.range.last() <= last) {
            self.current = self.mappings.next();
        }
        self.from = last.wrapping_add(1);
    }
}

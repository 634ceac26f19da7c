//! [`Pairs`]: which event met which state of a region with which kind of block, in one run of the JIT. It
//! is what coverage of our own code does not see, and libFuzzer is told of as counters.

use std::fmt;

use crate::case::{Action, Case, Event, Trigger};
use crate::exec::Figures;
use crate::guest::PAGE_SIZE;

macro_rules! list {
    ($(#[$attribute:meta])* $name:ident { $($(#[$note:meta])* $member:ident,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$note])* $member,)* }

        impl $name {
            /// Every one, in order.
            pub const ALL: &'static [Self] = &[$(Self::$member),*];
        }
    };
}

list! {
    /// What happened.
    EventKind {
        /// The run began.
        Start,
        /// The guest wrote to a page of code.
        GuestWrite,
        /// The host wrote to a page of code …
        CodeWrite,
        /// … or to another.
        DataWrite,
        /// The host mapped something.
        Map,
        /// … took it away.
        Unmap,
        /// … changed what the guest may do.
        Protect,
        /// … gave memory a second address.
        Alias,
        /// … moved memory.
        Remap,
        /// … asked the guest to leave.
        ExitRequest,
    }
}

list! {
    /// What became of translated code, at the event or until the next one.
    RegionState {
        /// Nothing.
        Untouched,
        /// A region was retired.
        Retired,
        /// Memory of a retired one was reclaimed.
        Reclaimed,
        /// A block was invalidated alone.
        Invalidated,
        /// A block came back as its bytes did.
        Revived,
        /// A block was taken over from a retired region.
        Adopted,
        /// A block was translated.
        Translated,
        /// A page is written so often that its blocks check themselves.
        OftenWritten,
    }
}

list! {
    /// What kind of blocks ran until the next event.
    BlockKind {
        /// No other kind.
        Plain,
        /// Jumps were pointed at their targets.
        Chained,
        /// They take their instructions off a budget.
        Counted,
        /// They check themselves.
        Checked,
        /// The program lies across two pages.
        Straddling,
    }
}

const STATES: usize = RegionState::ALL.len();
const BLOCKS: usize = BlockKind::ALL.len();

/// A set of (event, region state, kind of block).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Pairs([u64; Self::COUNT.div_ceil(64)]);

impl Pairs {
    /// How many there can be.
    pub const COUNT: usize = EventKind::ALL.len() * STATES * BLOCKS;

    /// Those of a run of `case` in which these figures were noted ([`crate::engine::jit::Jit::progress`]).
    #[must_use]
    pub fn of(case: &Case, progress: &[Figures]) -> Self {
        let mut pairs = Self::default();
        // A leg lies between two figures, and an event between it and the next leg.
        for (number, leg) in progress.chunks_exact(2).enumerate() {
            let next = case.events.get(number).map(|event| event.trigger);
            let before = number.checked_sub(1).map(|last| (progress[2 * last + 1], last));
            let kinds = match before {
                Some((before, event)) => event_kinds(case.events.get(event), &before, &leg[0]),
                None => vec![EventKind::Start],
            };
            let start = before.map_or(leg[0], |(before, _)| before);
            let blocks = block_kinds(case, next, &leg[0], &leg[1]);
            pairs.add_all(&kinds, &region_states(&start, &leg[1]), &blocks);
            if leg[1].code_writes > leg[0].code_writes {
                pairs.add_all(&[EventKind::GuestWrite], &region_states(&leg[0], &leg[1]), &blocks);
            }
        }
        pairs
    }

    fn add_all(&mut self, events: &[EventKind], states: &[RegionState], blocks: &[BlockKind]) {
        for &event in events {
            for &state in states {
                for &block in blocks {
                    let index = (event as usize * STATES + state as usize) * BLOCKS;
                    let index = index + block as usize;
                    self.0[index / 64] |= 1 << (index % 64);
                }
            }
        }
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }

    /// The number of each, below [`Self::COUNT`], in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..Self::COUNT).filter(|index| self.0[index / 64] >> (index % 64) & 1 != 0)
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.iter().map(|index| {
            let event = EventKind::ALL[index / BLOCKS / STATES];
            let state = RegionState::ALL[index / BLOCKS % STATES];
            format!("{event:?} {state:?} {:?}", BlockKind::ALL[index % BLOCKS])
        });
        formatter.debug_set().entries(names).finish()
    }
}

fn event_kinds(event: Option<&Event>, before: &Figures, behind: &Figures) -> Vec<EventKind> {
    let code_written = behind.code_writes > before.code_writes;
    let actions = event.map_or(&[][..], |event| &event.actions);
    let kind = |action: &Action| match action {
        Action::Write { .. } if code_written => EventKind::CodeWrite,
        Action::Write { .. } => EventKind::DataWrite,
        Action::Map(_) => EventKind::Map,
        Action::Unmap(_) => EventKind::Unmap,
        Action::Protect { .. } => EventKind::Protect,
        Action::Alias { .. } => EventKind::Alias,
        Action::Remap { .. } => EventKind::Remap,
        Action::ExitRequest => EventKind::ExitRequest,
    };
    actions.iter().map(kind).collect()
}

fn region_states(before: &Figures, behind: &Figures) -> Vec<RegionState> {
    let grown = |value: fn(&Figures) -> u64| value(behind) > value(before);
    let states = [
        (RegionState::Retired, grown(|figures| figures.regions_retired)),
        (RegionState::Reclaimed, grown(|figures| figures.regions_reclaimed)),
        (RegionState::Invalidated, grown(|figures| figures.blocks_invalidated)),
        (RegionState::Revived, grown(|figures| figures.blocks_revived)),
        (RegionState::Adopted, grown(|figures| figures.blocks_adopted)),
        (RegionState::Translated, grown(|figures| figures.translations)),
        (RegionState::OftenWritten, grown(|figures| figures.checked_pages)),
    ];
    some_or(states, RegionState::Untouched)
}

fn block_kinds(
    case: &Case,
    next: Option<Trigger>,
    before: &Figures,
    behind: &Figures,
) -> Vec<BlockKind> {
    let counted = case.limit.is_some() || matches!(next, Some(Trigger::Count(_)));
    // A program of some hundred bytes that begins so near to the border goes past it.
    let straddling = case.state.rip % PAGE_SIZE >= PAGE_SIZE - 256;
    let kinds = [
        (BlockKind::Chained, behind.chained > before.chained),
        (BlockKind::Counted, counted),
        (BlockKind::Checked, behind.checked_pages > 0),
        (BlockKind::Straddling, straddling),
    ];
    some_or(kinds, BlockKind::Plain)
}

fn some_or<T: Copy, const COUNT: usize>(all: [(T, bool); COUNT], none: T) -> Vec<T> {
    let some: Vec<T> = all.into_iter().filter(|(_, there)| *there).map(|(it, _)| it).collect();
    if some.is_empty() { vec![none] } else { some }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_meets_what_follows_it() {
        let event = Event { trigger: Trigger::Halt, actions: vec![Action::ExitRequest] };
        let case = Case { events: vec![event], ..Case::default() };
        let start = Figures::default();
        let translated = Figures { translations: 1, ..start };
        let retired = Figures { regions_retired: 1, ..translated };
        let behind = Figures { regions_retired: 1, chained: 1, ..translated };
        let pairs = Pairs::of(&case, &[start, translated, translated, behind]);
        let text = format!("{pairs:?}");
        assert_eq!(text, r#"{"Start Translated Plain", "ExitRequest Retired Chained"}"#);
        let mut both = Pairs::of(&case, &[start, translated, retired, retired]);
        assert_eq!(format!("{both:?}").matches("Retired").count(), 1);
        both.add(&pairs);
        assert_eq!(both.iter().count(), 3);
        assert!(both.iter().all(|index| index < Pairs::COUNT));
    }
}

//! The rows, by what they are about. Each is as narrow as its reason: at which instructions, under
//! which conditions, and in what.

use std::sync::LazyLock;

use super::conditions::always;
use super::{Accepted, Pattern, Stops};
use crate::oracle::compare::Difference;
use crate::oracle::localise::Divergence;

mod decoding;
mod faults;
mod integer;
mod sequence;
mod sse;
mod x87;
mod x87_state;

/// Every accepted difference. Where several rows cover one, the first is named.
pub static ACCEPTED: LazyLock<Vec<Accepted>> = LazyLock::new(|| {
    [
        decoding::ROWS,
        faults::ROWS,
        integer::ROWS,
        sse::ROWS,
        x87::ROWS,
        x87_state::ROWS,
        sequence::ROWS,
    ]
    .concat()
});

const DESIGN: &str = "no alignment, privilege or port model: by design of the emulator";
const FOUND: &str = "found by tregion";

/// A row about one instruction of Unicorn, at first without a condition.
const fn unicorn(name: &'static str, pattern: Pattern) -> Accepted {
    Accepted {
        name,
        engine: "unicorn",
        pattern,
        stops: |_| true,
        shows: |_| true,
        when: always,
        sequence: false,
        loses: false,
        reason: "",
        reference: "",
    }
}

impl Accepted {
    const fn stops(self, stops: fn(Stops) -> bool) -> Self {
        Self { stops, ..self }
    }

    const fn shows(self, shows: fn(&Difference) -> bool) -> Self {
        Self { shows, ..self }
    }

    const fn when(self, when: fn(&Divergence, &Difference) -> bool) -> Self {
        Self { when, ..self }
    }

    const fn in_sequence(self) -> Self {
        Self { sequence: true, ..self }
    }

    const fn loses(self) -> Self {
        Self { loses: true, ..self }
    }

    const fn because(self, reason: &'static str, reference: &'static str) -> Self {
        Self { reason, reference, ..self }
    }
}

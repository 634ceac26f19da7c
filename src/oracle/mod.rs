//! The oracle: who differs from silicon, where, and whether that is known.
//!
//! [`mod@compare`] turns two outcomes into differences, which are values. [`localise`] finds the
//! instructions that caused them. [`accepted`] is the one table of differences that have a reason.
//! [`judge`] puts the three together into a verdict, and [`minimise`] makes a case small while its
//! verdict stays the same.

pub mod accepted;
pub mod compare;
pub mod judge;
pub mod localise;
pub mod minimise;
mod undefined;

pub use accepted::{ACCEPTED, Accepted};
pub use compare::{Component, ComponentClass, Difference, Value, compare};
pub use judge::{EngineVerdict, Judge, Verdict};
pub use localise::{Culprit, Divergence};

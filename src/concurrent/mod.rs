//! Two vCPUs in one memory: a [`Scene`] is two small programs that load, store, exchange and rewrite each
//! other's instructions, and whose host changes code under them; [`outcomes`] is the set of all that can come out;
//! [`Stage`] runs them on two real vCPUs, many times. An outcome outside of the set is a difference.
//!
//! The set comes from the rules of x86 and of this machine and from nothing that the engine does (`model`), so
//! that the judge needs no second processor. What one vCPU alone makes of each instruction is compared with
//! the set's in a test here, and with the processor by campaigns.
//!
//! This knows the machine as its users do and no engine, case or campaign.

mod check;
mod draw;
mod model;
mod op;
mod scene;
mod stage;
#[cfg(test)]
mod tests;
mod text;

pub use check::{Counts, Difference, Watcher, smaller};
pub use model::{TooMany, outcomes};
pub use op::{HostOp, Op, Register, Way};
pub use scene::{HEAD_RECORDS, MOST_RECORDS, Outcome, Program, RECORD_BYTES, Scene};
pub use stage::{Round, Stage};
pub use text::{is_scene, parse, print};

//! [`Patch`]: a change that makes sources wrong on purpose, and what programs that try such changes share: a
//! [`Scratch`] copy of the project to apply them to, and commands with a limit ([`run_within`]).
//!
//! What a change breaks and who finds it is said in its head, the lines in front of the first file; what those
//! lines mean is the user's affair. Errors are sentences for people.

mod command;
mod patch;
mod scratch;

pub use command::{Ended, cargo, output, run_within};
pub use patch::Patch;
pub use scratch::Scratch;

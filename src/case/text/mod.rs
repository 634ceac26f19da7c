//! The text form of a [`Case`]: TOML, laid out for people, so that a case can be read, edited,
//! compared with `diff` and replayed from its file alone.
//!
//! ```toml
//! # tregion case
//! format = 1
//! mode = 64
//! note = "imul leaves ZF as it was"
//! limit = 100
//!
//! [registers]
//! rax = 0x0000000000000001
//! rip = 0x401000
//!
//! [[object]]
//! name = "code"
//! size = 0x1000
//! bytes = [
//!   "0x000: 48 01 d8",              # 401000  add rax,rbx
//!   "0x003: f4",                    # 401003  hlt
//! ]
//!
//! [[map]]
//! at = 0x401000
//! size = 0x1000
//! object = "code"
//! offset = 0x0
//! permissions = "r-x"
//!
//! [[event]]
//! when = "hlt"
//! do = [
//!   { write = { at = 0x401000, bytes = "90 90 90" } },  # nop; nop; nop
//! ]
//! ```
//!
//! Registers that are not written have the values of [`State::default`](crate::guest::State), bytes
//! that are not written are zero. Comments are for the reader: [`parse`] skips them,
//! [`print`](fn@print) makes them anew. Whatever [`Case::validate`] accepts survives
//! `parse(&print(case))` unchanged; whatever it rejects, [`parse`] rejects with the place of the
//! offending item.

mod check;
mod error;
mod hex;
mod parse;
mod print;
mod reader;

pub use error::ParseError;

use super::Case;
use crate::guest::State;

/// The number of this text form, in the key `format`.
const FORMAT: u64 = 1;

/// The first line of what [`print()`] gives; a case may be written without it.
pub const FIRST_LINE: &str = "# tregion case\n";

/// The text of `case`, with disassembly as comments.
#[must_use]
pub fn print(case: &Case) -> String {
    print::print(case, true)
}

/// The text of `case` without comments: as stable as the format itself, whatever the disassembler
/// says, and cheaper.
#[must_use]
pub fn print_bare(case: &Case) -> String {
    print::print(case, false)
}

/// The `[registers]` of `state`: those that are not as at the start of an empty case.
#[must_use]
pub fn print_state(state: &State) -> String {
    print::print_state(state)
}

/// The valid case that `text` describes.
pub fn parse(text: &str) -> Result<Case, ParseError> {
    parse::parse(text).map_err(|failure| failure.locate(text))
}

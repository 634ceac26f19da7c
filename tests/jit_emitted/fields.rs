//! Which words of the vCPU's block emitted code may access, and how.

use std::mem::offset_of;

use tregion::translate::{SLOT_BYTES, VcpuBlock};

/// A field, or several words of one.
struct Field {
    start: usize,
    bytes: usize,
    written: bool,
}

const fn word(start: usize, written: bool) -> Field {
    Field { start, bytes: 8, written }
}

const FIELDS: [Field; 15] = [
    Field { start: offset_of!(VcpuBlock, gpr) + 14 * 8, bytes: 16, written: true },
    Field { start: offset_of!(VcpuBlock, spill), bytes: 4 * 8, written: true },
    word(offset_of!(VcpuBlock, target), true),
    word(offset_of!(VcpuBlock, observed), true),
    word(offset_of!(VcpuBlock, word), true),
    word(offset_of!(VcpuBlock, word_move), true),
    word(offset_of!(VcpuBlock, poll), false),
    word(offset_of!(VcpuBlock, window), false),
    word(offset_of!(VcpuBlock, minus_window), false),
    word(offset_of!(VcpuBlock, fs_base), false),
    word(offset_of!(VcpuBlock, gs_base), false),
    word(offset_of!(VcpuBlock, budget), true),
    word(offset_of!(VcpuBlock, calm), true),
    word(offset_of!(VcpuBlock, record), true),
    Field { start: offset_of!(VcpuBlock, slot), bytes: SLOT_BYTES, written: true },
];

pub(crate) const POLL: i32 = offset_of!(VcpuBlock, poll) as i32;
pub(crate) const RECORD: i32 = offset_of!(VcpuBlock, record) as i32;
pub(crate) const WINDOW: i32 = offset_of!(VcpuBlock, window) as i32;
pub(crate) const MINUS_WINDOW: i32 = offset_of!(VcpuBlock, minus_window) as i32;
pub(crate) const FIRST_SPILL: i32 = offset_of!(VcpuBlock, spill) as i32;
pub(crate) const JUMP_TAGS: i32 = offset_of!(VcpuBlock, jump_tags) as i32;
pub(crate) const JUMP_HOSTS: i32 = offset_of!(VcpuBlock, jump_hosts) as i32;

/// Whether an access of `bytes` bytes at a constant offset from RSP is one that code has a use for.
pub(crate) fn allowed(offset: i64, bytes: usize, writes: bool) -> bool {
    let Ok(offset) = usize::try_from(offset) else { return false };
    let inside =
        |field: &Field| offset >= field.start && offset + bytes <= field.start + field.bytes;
    bytes > 0 && FIELDS.iter().any(|field| inside(field) && (field.written || !writes))
}

/// Whether a word at this offset is an address of the host's.
pub(crate) fn is_host_address(offset: i32) -> bool {
    [POLL, RECORD, WINDOW, MINUS_WINDOW].contains(&offset)
}

//! `[[object]]`: bytes that are not zero, an instruction a line where they are code.

use super::super::hex;
use super::code::{Decoded, Disassembler, ObjectCode, Stretch};
use super::{push_line, quote};
use crate::case::Object;

/// Data bytes a line.
const ROW: usize = 16;
/// As many zero bytes in code are no instructions but nothing.
const GAP: usize = 4;
/// Where comments start.
const COLUMN: usize = 36;

/// One line of bytes.
struct Row {
    start: usize,
    end: usize,
    comment: String,
}

pub(super) fn print(text: &mut String, object: &Object, code: &ObjectCode<'_>) {
    let (name, size) = (quote(&object.name), object.contents.len());
    text.push_str(&format!("\n[[object]]\nname = {name}\nsize = {size:#x}\n"));
    let mut rows = Vec::new();
    for stretch in code.stretches(size) {
        match stretch.address {
            Some(address) => add_code(&mut rows, &object.contents, stretch, address),
            None => add_data(&mut rows, &object.contents, stretch),
        }
    }
    if rows.is_empty() {
        return;
    }
    let digits = format!("{:x}", size - 1).len() + 2;
    text.push_str("bytes = [\n");
    for row in rows {
        let bytes = hex::print(&object.contents[row.start..row.end]);
        let line = format!("  \"{:#0digits$x}: {bytes}\",", row.start);
        push_line(text, &line, COLUMN, &row.comment);
    }
    text.push_str("]\n");
}

/// Rows that begin at multiples of their length, without zeros at either end.
fn add_data(rows: &mut Vec<Row>, contents: &[u8], stretch: Stretch) {
    let aligned = stretch.start - stretch.start % ROW;
    for row in (aligned..stretch.end).step_by(ROW) {
        let (start, end) = (row.max(stretch.start), stretch.end.min(row + ROW));
        let bytes = &contents[start..end];
        let first = bytes.iter().position(|&byte| byte != 0);
        let last = bytes.iter().rposition(|&byte| byte != 0);
        if let (Some(first), Some(last)) = (first, last) {
            let comment = String::new();
            rows.push(Row { start: start + first, end: start + last + 1, comment });
        }
    }
}

/// An instruction a row, straight on from the start; what is none is a row of bad bytes.
fn add_code(rows: &mut Vec<Row>, contents: &[u8], stretch: Stretch, address: u64) {
    let mut disassembler = Disassembler::new();
    let mut start = stretch.start;
    while start < stretch.end {
        let rest = &contents[start..stretch.end];
        let zeros = rest.iter().position(|&byte| byte != 0).unwrap_or(rest.len());
        if zeros >= GAP || zeros == rest.len() {
            start += zeros;
            continue;
        }
        let here = address.wrapping_add((start - stretch.start) as u64);
        let (length, what) = match disassembler.decode(rest, here) {
            Decoded::Instruction(length, what) => (length, what),
            Decoded::Bad => (1, "(bad)".to_owned()),
            Decoded::Cut => (rest.len(), "(goes on elsewhere)".to_owned()),
        };
        let comment = format!("{here:x}  {what}");
        rows.push(Row { start, end: start + length, comment });
        start += length;
    }
}

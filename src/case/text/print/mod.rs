//! [`Case`] to text. Nothing here fails: a case that is not valid is printed as well as can be.

mod code;
mod contents;
mod events;
mod registers;

use self::code::CodeMap;
use super::FORMAT;
use crate::case::{Case, MapModel, Mapping, Mode};
use crate::guest::State;

/// The text of `case`, with or without comments.
pub(super) fn print(case: &Case, comments: bool) -> String {
    let code = comments.then(|| CodeMap::of(case));
    let mut map = comments.then(|| MapModel::initial(case));
    let mut text = String::new();
    if comments {
        text.push_str(super::FIRST_LINE);
    }
    print_head(&mut text, case);
    registers::print(&mut text, &case.state, comments);
    for (index, object) in case.objects.iter().enumerate() {
        contents::print(&mut text, object, &CodeMap::of_object(code.as_ref(), index));
    }
    for mapping in &case.mappings {
        text.push_str("\n[[map]]\n");
        for (key, value) in mapping_entries(case, mapping) {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    for event in &case.events {
        events::print(&mut text, case, event, code.as_ref().zip(map.as_mut()));
    }
    text
}

/// The registers alone, with comments.
pub(super) fn print_state(state: &State) -> String {
    let mut text = String::new();
    registers::print(&mut text, state, true);
    text.trim_start().to_owned()
}

fn print_head(text: &mut String, case: &Case) {
    let mode = match case.mode {
        Mode::Long64 => 64,
    };
    text.push_str(&format!("format = {FORMAT}\nmode = {mode}\n"));
    if !case.note.is_empty() {
        text.push_str(&format!("note = {}\n", quote_note(&case.note)));
    }
    if let Some(limit) = case.limit {
        text.push_str(&format!("limit = {limit}\n"));
    }
}

/// Appends `line`, then `comment` from `column` on where there is one.
fn push_line(text: &mut String, line: &str, column: usize, comment: &str) {
    if comment.is_empty() {
        text.push_str(line);
    } else {
        text.push_str(&format!("{line:<column$}  # {comment}"));
    }
    text.push('\n');
}

/// The keys of a mapping and their values, in order.
fn mapping_entries(case: &Case, mapping: &Mapping) -> [(&'static str, String); 5] {
    let name = case.objects.get(mapping.object.0).map_or("", |object| object.name.as_str());
    [
        ("at", mapping.range.start().to_string()),
        ("size", format!("{:#x}", mapping.range.size())),
        ("object", quote(name)),
        ("offset", format!("{:#x}", mapping.offset)),
        ("permissions", format!("\"{}\"", mapping.permissions)),
    ]
}

/// `text` as a TOML basic string on one line.
fn quote(text: &str) -> String {
    format!("\"{}\"", escape(text))
}

/// `text` as a TOML string, over several lines if it has several.
fn quote_note(text: &str) -> String {
    if text.contains('\n') {
        let lines: Vec<String> = text.split('\n').map(escape).collect();
        format!("\"\"\"\n{}\"\"\"", lines.join("\n"))
    } else {
        quote(text)
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\\' => escaped.extend(['\\', character]),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            control if control.is_control() => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

//! `[[event]]`: an action a line.

use super::super::hex;
use super::code::{CodeMap, summary};
use super::{mapping_entries, push_line};
use crate::case::{Action, Case, Event, MapModel, Trigger};
use crate::guest::{GuestAddress, GuestRange};

/// A write of more bytes takes several lines.
const LONG: usize = 32;
/// Bytes a line of a long write.
const ROW: usize = 16;

/// Prints an event. For comments there is the code of the case and what is mapped before the event,
/// which becomes what is mapped after it.
pub(super) fn print(
    text: &mut String,
    case: &Case,
    event: &Event,
    mut code: Option<(&CodeMap, &mut MapModel)>,
) {
    text.push_str(&format!("\n[[event]]\nwhen = {}\n", trigger(event.trigger)));
    if event.actions.is_empty() {
        text.push_str("do = []\n");
        return;
    }
    text.push_str("do = [\n");
    for action in &event.actions {
        let comment = code.as_mut().map_or(String::new(), |(code, map)| {
            let comment = comment(action, code, map);
            // The printer takes any case: an action that fails changes nothing.
            let _ = map.apply(action);
            comment
        });
        push_line(text, &format!("  {},", action_text(case, action)), 0, &comment);
    }
    text.push_str("]\n");
}

fn trigger(trigger: Trigger) -> String {
    match trigger {
        Trigger::Halt => "\"hlt\"".to_owned(),
        Trigger::Count(count) => format!("{{ count = {count} }}"),
        Trigger::Breakpoint(address) => format!("{{ breakpoint = {address} }}"),
    }
}

fn action_text(case: &Case, action: &Action) -> String {
    let (name, entries) = match action {
        Action::Write { address, bytes } => {
            ("write", format!("at = {address}, bytes = {}", bytes_text(bytes)))
        }
        Action::Map(mapping) => {
            let entries = mapping_entries(case, mapping);
            ("map", entries.map(|(key, value)| format!("{key} = {value}")).join(", "))
        }
        Action::Unmap(range) => ("unmap", pages("at", *range)),
        Action::Protect { range, permissions } => {
            ("protect", format!("{}, permissions = \"{permissions}\"", pages("at", *range)))
        }
        Action::Alias { source, destination } => ("alias", moved(*source, *destination)),
        Action::Remap { source, destination } => ("remap", moved(*source, *destination)),
        Action::ExitRequest => return "\"exit-request\"".to_owned(),
    };
    format!("{{ {name} = {{ {entries} }} }}")
}

fn pages(key: &str, range: GuestRange) -> String {
    format!("{key} = {}, size = {:#x}", range.start(), range.size())
}

fn moved(source: GuestRange, destination: GuestAddress) -> String {
    format!("{}, to = {destination}", pages("from", source))
}

fn bytes_text(bytes: &[u8]) -> String {
    if bytes.len() <= LONG {
        return format!("\"{}\"", hex::print(bytes));
    }
    let rows = bytes.chunks(ROW).map(|row| format!("    \"{}\",\n", hex::print(row)));
    format!("[\n{}  ]", rows.collect::<String>())
}

/// What a write into code writes.
fn comment(action: &Action, code: &CodeMap, map: &MapModel) -> String {
    let Action::Write { address, bytes } = action else { return String::new() };
    code.executed_at(map, *address).map_or(String::new(), |address| summary(bytes, address))
}

//! `[[event]]`: triggers and actions.

use super::super::check::Checker;
use super::super::error::Read;
use super::super::reader::{Item, Table};
use super::{objects, read_count};
use crate::case::{Action, Case, Event, Trigger};
use crate::guest::GuestAddress;

const ACTIONS: [&str; 7] = ["write", "map", "unmap", "protect", "alias", "remap", "exit-request"];

/// Reads one event of `case` and plays it through.
pub(super) fn read(item: &Item<'_>, case: &Case, checker: &mut Checker) -> Read<Event> {
    let table = item.table(&["when", "do"])?;
    let trigger = read_trigger(&table.required("when")?)?;
    let mut actions = Vec::new();
    for item in table.required("do")?.items()? {
        let action = read_action(&item, case)?;
        checker.apply(&item, &action)?;
        actions.push(action);
    }
    Ok(Event { trigger, actions })
}

fn read_trigger(item: &Item<'_>) -> Read<Trigger> {
    if item.is_text() {
        return match item.text()? {
            "hlt" => Ok(Trigger::Halt),
            _ => item.expected("`\"hlt\"`, `{ count = … }` or `{ breakpoint = … }`"),
        };
    }
    match item.only_entry(&["count", "breakpoint"])? {
        ("count", count) => read_count(&count).map(Trigger::Count),
        (_, breakpoint) => breakpoint.address().map(Trigger::Breakpoint),
    }
}

fn read_action(item: &Item<'_>, case: &Case) -> Read<Action> {
    if item.is_text() {
        return match item.text()? {
            "exit-request" => Ok(Action::ExitRequest),
            _ => item.expected("`\"exit-request\"` or a table with one action"),
        };
    }
    let (kind, item) = item.only_entry(&ACTIONS)?;
    match kind {
        "write" => read_write(&item),
        "map" => objects::read_mapping(&item, case).map(Action::Map),
        "unmap" => item.table(&["at", "size"])?.range("at").map(Action::Unmap),
        "protect" => read_protect(&item),
        "alias" => {
            let table = item.table(&["from", "size", "to"])?;
            Ok(Action::Alias { source: table.range("from")?, destination: read_to(&table)? })
        }
        "remap" => {
            let table = item.table(&["from", "size", "to"])?;
            Ok(Action::Remap { source: table.range("from")?, destination: read_to(&table)? })
        }
        _ => item.table(&[]).map(|_| Action::ExitRequest),
    }
}

fn read_to(table: &Table<'_>) -> Read<GuestAddress> {
    table.required("to")?.address()
}

/// The bytes are one string, or several.
fn read_write(item: &Item<'_>) -> Read<Action> {
    let table = item.table(&["at", "bytes"])?;
    let address = table.required("at")?.address()?;
    let item = table.required("bytes")?;
    let mut bytes = Vec::new();
    if item.is_text() {
        bytes = item.hex_from(0)?;
    } else {
        for row in item.items()? {
            bytes.extend(row.hex_from(0)?);
        }
    }
    Ok(Action::Write { address, bytes })
}

fn read_protect(item: &Item<'_>) -> Read<Action> {
    let table = item.table(&["at", "size", "permissions"])?;
    let range = table.range("at")?;
    Ok(Action::Protect { range, permissions: objects::read_permissions(&table)? })
}

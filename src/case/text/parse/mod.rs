//! Text to [`Case`]. The order is that of a file: head, registers, objects, mappings, events; each
//! part is checked as soon as it is read, so that the first complaint is the first in the file.

mod events;
mod objects;
mod registers;

use toml::de::DeTable;

use super::FORMAT;
use super::check::Checker;
use super::error::{Failure, Read};
use super::reader::{Item, Table};
use crate::case::{Case, Mode};

const KEYS: [&str; 8] = ["format", "mode", "note", "limit", "registers", "object", "map", "event"];

pub(super) fn parse(text: &str) -> Read<Case> {
    let document = DeTable::parse(text)?;
    let root = Table::document(text, document.get_ref(), &KEYS)?;
    let mut case = read_head(&root)?;
    if let Some(registers) = root.optional("registers") {
        case.state = registers::read(&registers)?;
    }
    objects::read(&root, &mut case)?;
    let mut checker = Checker::new(&case);
    for item in root.array("map")? {
        let mapping = objects::read_mapping(&item, &case)?;
        checker.map(&item, mapping)?;
        case.mappings.push(mapping);
    }
    for item in root.array("event")? {
        let event = events::read(&item, &case, &mut checker)?;
        case.events.push(event);
    }
    // Every rule has been checked above, at its place. Should one be added there and forgotten
    // here, the case is still refused.
    case.validate().map_err(|invalid| Failure::new(0, invalid))?;
    Ok(case)
}

fn read_head(root: &Table<'_>) -> Read<Case> {
    let format = root.required("format")?;
    let number: u64 = format.number()?;
    if number != FORMAT {
        return format.fail(format!("unknown format {number}, expected {FORMAT}"));
    }
    Ok(Case {
        mode: read_mode(&root.required("mode")?)?,
        note: root.optional("note").map_or(Ok(""), |note| note.text())?.to_owned(),
        limit: root.optional("limit").map(|limit| read_count(&limit)).transpose()?,
        ..Case::default()
    })
}

fn read_mode(item: &Item<'_>) -> Read<Mode> {
    match item.number::<u64>()? {
        64 => Ok(Mode::Long64),
        other => item.fail(format!("unknown mode {other}, expected 64")),
    }
}

fn read_count(item: &Item<'_>) -> Read<u64> {
    match item.number()? {
        0 => item.fail("a count of instructions is zero"),
        count => Ok(count),
    }
}

//! `[[object]]` and `[[map]]`.

use super::super::check::{ObjectPlaces, check_objects};
use super::super::error::Read;
use super::super::reader::{Item, Table};
use crate::case::validate::MAX_BYTES;
use crate::case::{Case, Mapping, Object, ObjectId};
use crate::guest::Permissions;

/// Objects are refused past this many bytes before memory is taken for them.
const MOST_BYTES: u64 = MAX_BYTES as u64;

/// Reads all `[[object]]`s into `case` and checks them.
pub(super) fn read(root: &Table<'_>, case: &mut Case) -> Read<()> {
    let (mut places, mut left) = (Vec::new(), MOST_BYTES);
    for item in root.array("object")? {
        let table = item.table(&["name", "size", "bytes"])?;
        let (name, size) = (table.required("name")?, table.required("size")?);
        let bytes: u64 = size.number()?;
        let Some(rest) = left.checked_sub(bytes) else {
            return size.fail(format!("the objects have more than {MOST_BYTES:#x} bytes together"));
        };
        left = rest;
        let mut contents = vec![0; bytes as usize];
        read_runs(&table, &mut contents)?;
        case.objects.push(Object { name: name.text()?.to_owned(), contents });
        places.push(ObjectPlaces { name: name.place(), size: size.place() });
    }
    check_objects(&places, case)
}

/// Reads the strings `offset: bytes` into `contents`. No byte may be given twice.
fn read_runs(table: &Table<'_>, contents: &mut [u8]) -> Read<()> {
    let mut runs: Vec<(Item<'_>, usize, usize)> = Vec::new();
    for item in table.array("bytes")? {
        let (start, bytes) = read_run(&item)?;
        let end = start.checked_add(bytes.len());
        let Some(target) = end.and_then(|end| contents.get_mut(start..end)) else {
            return item.fail(format!("bytes at {start:#x} do not lie in the object"));
        };
        target.copy_from_slice(&bytes);
        runs.push((item, start, start + bytes.len()));
    }
    runs.sort_by_key(|&(_, start, _)| start);
    for pair in runs.windows(2) {
        let ((first, _, end), (second, start, _)) = (&pair[0], &pair[1]);
        if end > start {
            let later = if first.place() > second.place() { first } else { second };
            return later.fail(format!("the byte at {start:#x} is given twice"));
        }
    }
    Ok(())
}

/// `0x010: 48 01 d8`
fn read_run(item: &Item<'_>) -> Read<(usize, Vec<u8>)> {
    let text = item.text()?;
    let Some((offset, _)) = text.split_once(':') else {
        return item.expected("a string `offset: bytes`");
    };
    let digits = offset.trim().strip_prefix("0x").unwrap_or_default();
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    match usize::from_str_radix(digits, 16) {
        Ok(start) if plain => match item.hex_from(offset.len() + 1)? {
            bytes if bytes.is_empty() => item.expected("bytes after the offset"),
            bytes => Ok((start, bytes)),
        },
        _ => item.expected("an offset such as `0x010:` before the bytes"),
    }
}

/// Reads one mapping of an object of `case`.
pub(super) fn read_mapping(item: &Item<'_>, case: &Case) -> Read<Mapping> {
    let table = item.table(&["at", "size", "object", "offset", "permissions"])?;
    let range = table.range("at")?;
    let name = table.required("object")?;
    let Some(object) = find_object(case, name.text()?) else {
        return name.expected("the name of an object");
    };
    let offset = table.required("offset")?.number()?;
    Ok(Mapping { range, object, offset, permissions: read_permissions(&table)? })
}

pub(super) fn read_permissions(table: &Table<'_>) -> Read<Permissions> {
    let item = table.required("permissions")?;
    item.text()?.parse::<Permissions>().or_else(|error| item.fail(error))
}

fn find_object(case: &Case, name: &str) -> Option<ObjectId> {
    case.objects.iter().position(|object| object.name == name).map(ObjectId)
}

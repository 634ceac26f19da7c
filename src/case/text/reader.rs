//! [`Item`] and [`Table`]: typed access to a TOML document in which each value knows its place. All
//! complaints about the shape of a text (types, ranges, missing and unknown keys) are worded here.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Failure, Read};
use super::hex;
use crate::guest::{GuestAddress, GuestRange, RangeError};

/// One value of the document.
#[derive(Clone, Copy)]
pub(super) struct Item<'t> {
    source: &'t str,
    value: &'t DeValue<'t>,
    place: usize,
}

/// A table with only known keys.
#[derive(Clone, Copy)]
pub(super) struct Table<'t> {
    source: &'t str,
    entries: &'t DeTable<'t>,
    place: usize,
}

impl<'t> Item<'t> {
    fn new(source: &'t str, value: &'t Spanned<DeValue<'t>>) -> Self {
        Self { source, value: value.get_ref(), place: value.span().start }
    }

    /// Byte offset in the text.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    pub(super) fn fail<T>(&self, message: impl ToString) -> Read<T> {
        Err(Failure::new(self.place, message))
    }

    pub(super) fn expected<T>(&self, what: &str) -> Read<T> {
        self.fail(format!("expected {what}, found {}", describe(self.value)))
    }

    /// A number that fits `T`.
    pub(super) fn number<T: TryFrom<u128>>(&self) -> Read<T> {
        let Some(integer) = self.value.as_integer() else {
            return self.expected("an integer");
        };
        u128::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .and_then(|number| T::try_from(number).ok())
            .map_or_else(
                || self.expected(&format!("an unsigned {}-bit integer", 8 * size_of::<T>())),
                Ok,
            )
    }

    pub(super) fn address(&self) -> Read<GuestAddress> {
        self.number().map(GuestAddress)
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    pub(super) fn text(&self) -> Read<&'t str> {
        self.value.as_str().map_or_else(|| self.expected("a string"), Ok)
    }

    /// Complains about the character at byte `index` of this string.
    pub(super) fn fail_at<T>(&self, index: usize, message: impl ToString) -> Read<T> {
        let content = self.place + 1;
        let plain = self.value.as_str().is_some_and(|text| {
            self.source.get(content..).is_some_and(|source| source.starts_with(text))
        });
        Err(Failure::new(if plain { content + index } else { self.place }, message))
    }

    /// The hexadecimal bytes of this string from byte `start` on.
    pub(super) fn hex_from(&self, start: usize) -> Read<Vec<u8>> {
        let text = self.text()?.get(start..).unwrap_or_default();
        hex::parse(text).or_else(|(index, message)| self.fail_at(start + index, message))
    }

    pub(super) fn items(&self) -> Read<impl Iterator<Item = Item<'t>> + use<'t>> {
        let source = self.source;
        match self.value.as_array() {
            Some(array) => Ok(array.iter().map(move |value| Item::new(source, value))),
            None => self.expected("an array"),
        }
    }

    /// A table with no keys but `known`.
    pub(super) fn table(&self, known: &[&str]) -> Read<Table<'t>> {
        match self.value.as_table() {
            Some(entries) => Table::new(self.source, entries, self.place, known),
            None => self.expected("a table"),
        }
    }

    /// What stands under `path`, keys with spaces between them, if it is there.
    pub(super) fn find(&self, path: &str) -> Option<Item<'t>> {
        path.split(' ').try_fold(*self, |item, key| {
            item.value.get(key).map(|value| Item::new(self.source, value))
        })
    }

    /// The only entry of a table that has to have exactly one, out of `known`.
    pub(super) fn only_entry(&self, known: &[&str]) -> Read<(&'t str, Item<'t>)> {
        let table = self.table(known)?;
        let mut entries = table.entries.iter();
        match (entries.next(), entries.next()) {
            (Some((key, value)), None) => Ok((key.get_ref(), Item::new(self.source, value))),
            _ => self.fail(format!("expected exactly one of {}", list(known))),
        }
    }
}

impl<'t> Table<'t> {
    /// The whole document.
    pub(super) fn document(source: &'t str, root: &'t DeTable<'t>, known: &[&str]) -> Read<Self> {
        Self::new(source, root, 0, known)
    }

    fn new(source: &'t str, entries: &'t DeTable<'t>, place: usize, known: &[&str]) -> Read<Self> {
        let first_unknown = entries
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        match first_unknown {
            None => Ok(Self { source, entries, place }),
            Some(key) => {
                let name = key.get_ref().escape_debug();
                let message = format!("unknown key `{name}`, expected {}", list(known));
                Err(Failure::new(key.span().start, message))
            }
        }
    }

    pub(super) fn optional(&self, key: &str) -> Option<Item<'t>> {
        self.entries.get(key).map(|value| Item::new(self.source, value))
    }

    pub(super) fn required(&self, key: &str) -> Read<Item<'t>> {
        self.optional(key).map_or_else(
            || Err(Failure::new(self.place, format!("the key `{key}` is missing"))),
            Ok,
        )
    }

    /// The tables `[[key]]`; none if there is no such key.
    pub(super) fn array(&self, key: &str) -> Read<Vec<Item<'t>>> {
        self.optional(key).map_or(Ok(Vec::new()), |item| Ok(item.items()?.collect()))
    }

    /// The pages that the keys `start` and `size` name.
    pub(super) fn range(&self, start: &str) -> Read<GuestRange> {
        let (start, size) = (self.required(start)?, self.required("size")?);
        GuestRange::new(start.address()?, size.number()?).or_else(|error| match error {
            RangeError::StartUnaligned(_) | RangeError::Wraps { .. } => start.fail(error),
            RangeError::SizeUnaligned(_) | RangeError::Empty => size.fail(error),
        })
    }
}

/// At most this many characters of a text are repeated in a message.
const QUOTED: usize = 40;

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.chars().count() <= QUOTED => {
            format!("the string \"{}\"", text.escape_debug())
        }
        DeValue::String(_) => "a long string".to_owned(),
        DeValue::Integer(integer) => {
            format!("the integer {}", integer.to_string().chars().take(QUOTED).collect::<String>())
        }
        DeValue::Float(_) => "a float".to_owned(),
        DeValue::Boolean(value) => format!("`{value}`"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// `a`, `b` or `c`; long lists are cut.
fn list(known: &[&str]) -> String {
    const SHOWN: usize = 12;
    let quoted: Vec<String> = known.iter().take(SHOWN).map(|key| format!("`{key}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        all if known.len() > SHOWN => format!("{}, …", all.join(", ")),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

//! Bytes as pairs of hexadecimal digits, both ways.

use std::fmt::Write;

/// `48 01 d8`
pub(super) fn print(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (index, byte) in bytes.iter().enumerate() {
        let space = if index == 0 { "" } else { " " };
        write!(text, "{space}{byte:02x}").expect("a String takes all that is written to it");
    }
    text
}

/// Reads pairs of digits with any spaces between the pairs. An error comes with its byte offset in
/// `text`.
pub(super) fn parse(text: &str) -> Result<Vec<u8>, (usize, String)> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let mut first: Option<(usize, u8)> = None;
    for (index, character) in text.char_indices() {
        let digit = character.to_digit(16).map(|digit| digit as u8);
        first = match (first, digit) {
            (None, Some(digit)) => Some((index, digit)),
            (Some((_, high)), Some(low)) => {
                bytes.push(high << 4 | low);
                None
            }
            (None, None) if character == ' ' => None,
            (Some((start, _)), None) if character == ' ' => return Err(odd(start)),
            (_, None) => return Err((index, unexpected(character))),
        };
    }
    first.map_or(Ok(bytes), |(start, _)| Err(odd(start)))
}

fn odd(start: usize) -> (usize, String) {
    (start, "expected pairs of hexadecimal digits, found an odd digit".to_owned())
}

fn unexpected(character: char) -> String {
    format!("expected a hexadecimal digit, found `{}`", character.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(parse(&print(&bytes)), Ok(bytes));
        assert_eq!(parse(" 4801 D8 "), Ok(vec![0x48, 0x01, 0xd8]));
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn errors_have_a_place() {
        for (text, place) in [("4", 0), ("48 1", 3), ("48 1 22", 3), ("48 é", 3), ("4x", 1)] {
            assert_eq!(parse(text).map_err(|(at, _)| at), Err(place), "{text}");
        }
    }
}

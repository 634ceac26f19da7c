//! [`ParseError`]: why a text is not a case, and where; [`Failure`], the same by byte offset.

/// Why a text is not a case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line of the offending item, from 1.
    pub line: usize,
    /// Column of the offending item in characters, from 1.
    pub column: usize,
    /// What is wrong with it.
    pub message: String,
}

/// A [`ParseError`] before lines are counted.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// Byte offset in the text.
    place: usize,
    message: String,
}

/// The outcome of reading one item.
pub(super) type Read<T> = Result<T, Failure>;

impl Failure {
    pub(super) fn new(place: usize, message: impl ToString) -> Self {
        Self { place, message: message.to_string() }
    }

    /// Counts lines and columns. An offset inside a character counts as that character.
    pub(super) fn locate(self, text: &str) -> ParseError {
        let before = &text.as_bytes()[..self.place.min(text.len())];
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let newlines = before.iter().filter(|&&byte| byte == b'\n').count();
        let characters =
            before[line_start..].iter().filter(|&&byte| byte & 0b1100_0000 != 0b1000_0000).count();
        ParseError { line: newlines + 1, column: characters + 1, message: self.message }
    }
}

impl From<toml::de::Error> for Failure {
    fn from(error: toml::de::Error) -> Self {
        Self::new(error.span().map_or(0, |span| span.start), error.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns_count_from_one() {
        let locate = |text: &str, place| {
            let error = Failure::new(place, "").locate(text);
            (error.line, error.column)
        };
        assert_eq!(locate("", 0), (1, 1));
        assert_eq!(locate("ab\ncd", 1), (1, 2));
        assert_eq!(locate("ab\ncd", 3), (2, 1));
        assert_eq!(locate("ab\ncd", 99), (2, 3));
        assert_eq!(locate("é=1", 2), (1, 2));
    }
}

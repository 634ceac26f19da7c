//! [`Target`]: the fuzz targets by name, what their inputs are, and how one becomes another.

use std::str::FromStr;
use std::sync::OnceLock;

use arbitrary::Unstructured;

use super::mutate::{self, Cut};
use crate::case::{Case, text};
use crate::concurrent::{HEAD_RECORDS, MOST_RECORDS, RECORD_BYTES};
use crate::generate::{Generator, HostFeatures, MOST_LITERAL, MOST_PIECES, PIECE_BYTES};

/// A fuzz target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// [`super::case_text`]: the text of a case.
    CaseText,
    /// [`super::differential`]: choices for a program.
    Differential,
    /// [`super::smc_remap`]: scenes in which code changes.
    SmcRemap,
    /// [`super::raw_bytes`]: a program.
    RawBytes,
    /// [`super::mapping`]: operations on guest memory.
    Mapping,
    /// [`super::concurrent`]: two programs.
    Concurrent,
}

/// Why something is no case, or no input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCase {
    /// The target's inputs are no cases.
    #[error("an input of `{0}` is no case")]
    NotOfCases(&'static str),
    /// The bytes are no text.
    #[error("the input is not UTF-8: {0}")]
    NotText(#[from] std::str::Utf8Error),
    /// The text is no case.
    #[error(transparent)]
    Parse(#[from] text::ParseError),
    /// The case of a text has too much memory.
    #[error("the case has more than {MOST_MEMORY:#x} bytes of memory")]
    TooLarge,
    /// There is no target of this name.
    #[error("there is no target `{0}`, but {names}", names = names())]
    NoTarget(String),
}

fn names() -> String {
    Target::ALL.map(Target::name).join(", ")
}

/// A text that is taken for a case has at most this many bytes of memory: any more costs more time than it
/// is worth.
const MOST_MEMORY: usize = 1 << 20;

/// The generator that all targets share.
pub(super) fn generator() -> &'static Generator {
    static GENERATOR: OnceLock<Generator> = OnceLock::new();
    GENERATOR.get_or_init(|| Generator::new(&HostFeatures::detect()))
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 6] = [
        Self::CaseText,
        Self::Differential,
        Self::SmcRemap,
        Self::RawBytes,
        Self::Mapping,
        Self::Concurrent,
    ];

    /// What the target is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CaseText => "case_text",
            Self::Differential => "differential",
            Self::SmcRemap => "smc_remap",
            Self::RawBytes => "raw_bytes",
            Self::Mapping => "mapping",
            Self::Concurrent => "concurrent",
        }
    }

    /// Whether its inputs are cases.
    #[must_use]
    pub fn is_of_cases(self) -> bool {
        !matches!(self, Self::Mapping | Self::Concurrent)
    }

    /// The case that an input makes.
    pub fn case_of(self, input: &[u8]) -> Result<Case, NoCase> {
        if !self.is_of_cases() {
            return Err(NoCase::NotOfCases(self.name()));
        }
        if self == Self::CaseText {
            return Ok(text::parse(std::str::from_utf8(input)?)?);
        }
        if let Some(case) = text_of(input) {
            return case;
        }
        let case = match self {
            Self::SmcRemap => generator().changing(input).case,
            Self::RawBytes => generator().literal(input),
            _ => generator().program(&mut Unstructured::new(input)).case,
        };
        assert_eq!(case.validate(), Ok(()), "generated cases are valid");
        Ok(case)
    }

    /// An input that makes `case`: its bytes where they are the program, else its text.
    pub fn input_of(self, case: &Case) -> Result<Vec<u8>, NoCase> {
        let literal = match self {
            Self::RawBytes => generator().literal_bytes(case),
            _ if !self.is_of_cases() => return Err(NoCase::NotOfCases(self.name())),
            _ => None,
        };
        Ok(literal.unwrap_or_else(|| text::print(case).into_bytes()))
    }

    /// Changes an input, `data[..size]`, into another one of at most `max_size` bytes, and gives its size.
    /// The same seed makes the same change. Records, operations and instructions stay whole.
    ///
    /// Panics if `data` has less than `max_size` bytes.
    pub fn mutate(self, data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
        mutate::mutate(self.cut(), data, size, max_size, seed)
    }

    /// Makes one input, in `out`, of the first part of one and the last part of another; its size.
    pub fn cross_over(self, first: &[u8], second: &[u8], out: &mut [u8], seed: u32) -> usize {
        mutate::cross_over(self.cut(), first, second, out, seed)
    }

    fn cut(self) -> Cut {
        match self {
            Self::SmcRemap => Cut::Records { size: PIECE_BYTES, most: MOST_PIECES, head: 1 },
            Self::RawBytes => Cut::Instructions { most: MOST_LITERAL },
            Self::Mapping => {
                let most = super::mapping::MOST_STEPS;
                Cut::Records { size: super::mapping::STEP_BYTES, most, head: 0 }
            }
            Self::Concurrent => {
                Cut::Records { size: RECORD_BYTES, most: MOST_RECORDS, head: HEAD_RECORDS }
            }
            Self::CaseText | Self::Differential => Cut::Bytes,
        }
    }
}

impl FromStr for Target {
    type Err = NoCase;

    fn from_str(name: &str) -> Result<Self, NoCase> {
        let target = Self::ALL.into_iter().find(|target| target.name() == name);
        target.ok_or_else(|| NoCase::NoTarget(name.to_owned()))
    }
}

/// The case that an input is as a text.
pub(super) fn case_in_text(input: &[u8]) -> Option<Case> {
    text_of(input)?.ok()
}

/// What an input is as a text, unless it is not meant to be one. What begins like a printed case is; what
/// only begins like a comment or a key may be other bytes by chance.
fn text_of(input: &[u8]) -> Option<Result<Case, NoCase>> {
    let printed = input.starts_with(text::FIRST_LINE.as_bytes());
    if !printed && !input.starts_with(b"#") && !input.starts_with(b"format") {
        return None;
    }
    let case = std::str::from_utf8(input)
        .map_err(NoCase::NotText)
        .and_then(|text| text::parse(text).map_err(NoCase::Parse));
    match case {
        Ok(case) => {
            let memory: usize = case.objects.iter().map(|object| object.contents.len()).sum();
            Some(if memory <= MOST_MEMORY { Ok(case) } else { Err(NoCase::TooLarge) })
        }
        Err(_) if !printed => None,
        Err(error) => Some(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_case_is_an_input_of_every_target_of_cases() {
        let case = Target::SmcRemap.case_of(&[7; 100]).unwrap();
        for target in Target::ALL {
            assert_eq!(target.name().parse(), Ok(target));
            let input = target.input_of(&case);
            if !target.is_of_cases() {
                assert_eq!(input, Err(NoCase::NotOfCases(target.name())));
                continue;
            }
            assert_eq!(target.case_of(&input.unwrap()), Ok(case.clone()), "{}", target.name());
        }
    }

    #[test]
    fn bytes_come_back_where_they_are_the_program() {
        let case = Target::RawBytes.case_of(b"\x48\xff\xc0").unwrap();
        assert_eq!(Target::RawBytes.input_of(&case), Ok(b"\x48\xff\xc0".to_vec()));
        let limited = Case { limit: Some(3), ..case };
        assert!(Target::RawBytes.input_of(&limited).unwrap().starts_with(b"# tregion case"));
    }

    #[test]
    fn a_broken_text_is_no_case() {
        let broken = Target::Differential.case_of(b"# tregion case\nformat = 2\n");
        assert!(matches!(broken, Err(NoCase::Parse(_))), "{broken:?}");
        assert!(Target::Differential.case_of(b"# other bytes").is_ok());
        assert!(matches!(Target::CaseText.case_of(b"\xff"), Err(NoCase::NotText(_))));
    }
}

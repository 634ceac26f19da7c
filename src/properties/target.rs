//! [`Target`]: the fuzz targets by name, what their inputs are, and how one becomes another.

use std::sync::OnceLock;

use arbitrary::Unstructured;

use super::mutate::{self, Cut};
use crate::case::{Case, text};
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
    pub const ALL: [Self; 5] =
        [Self::CaseText, Self::Differential, Self::SmcRemap, Self::RawBytes, Self::Mapping];

    /// What the target is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CaseText => "case_text",
            Self::Differential => "differential",
            Self::SmcRemap => "smc_remap",
            Self::RawBytes => "raw_bytes",
            Self::Mapping => "mapping",
        }
    }

    /// The case that an input makes.
    pub fn case_of(self, input: &[u8]) -> Result<Case, NoCase> {
        if self == Self::CaseText {
            return Ok(text::parse(std::str::from_utf8(input)?)?);
        }
        if self != Self::Mapping
            && let Some(case) = case_in_text(input)
        {
            return Ok(case);
        }
        let case = match self {
            Self::Differential => generator().program(&mut Unstructured::new(input)).case,
            Self::SmcRemap => generator().changing(input).case,
            Self::RawBytes => generator().literal(input),
            _ => return Err(NoCase::NotOfCases(self.name())),
        };
        assert_eq!(case.validate(), Ok(()), "generated cases are valid");
        Ok(case)
    }

    /// An input that makes `case`: its bytes where they are the program, else its text.
    pub fn input_of(self, case: &Case) -> Result<Vec<u8>, NoCase> {
        let literal = match self {
            Self::RawBytes => generator().literal_bytes(case),
            Self::Mapping => return Err(NoCase::NotOfCases(self.name())),
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
            Self::CaseText | Self::Differential => Cut::Bytes,
        }
    }
}

/// The case that a text is, if it is one that is not too large.
pub(super) fn case_in_text(input: &[u8]) -> Option<Case> {
    if !input.starts_with(b"#") && !input.starts_with(b"format") {
        return None;
    }
    let case = text::parse(std::str::from_utf8(input).ok()?).ok()?;
    let memory: usize = case.objects.iter().map(|object| object.contents.len()).sum();
    (memory <= MOST_MEMORY).then_some(case)
}

//! [`MnemonicPairs`]: which mnemonics have been executed one behind the other.
//!
//! There are millions of pairs, so the set is bits, kept in a file of its own beside the summary. It is
//! written before the summary: after a kill it may have pairs of cases that are not counted there, which
//! are run again and bring the same pairs.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use iced_x86::Mnemonic;

use super::folder::{FileError, at};

/// Name of the file in a campaign's folder.
pub(super) const FILE: &str = "pairs.bin";

/// Mnemonics have numbers below this; a test says so.
const MNEMONICS: usize = 2048;
/// Words of a set that is not empty.
const WORDS: usize = MNEMONICS * MNEMONICS / 64;

/// A set of pairs of mnemonics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MnemonicPairs(Vec<u64>);

/// The number of a pair in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair(u32);

impl Pair {
    pub(super) fn new(first: Mnemonic, second: Mnemonic) -> Self {
        Self((first as usize * MNEMONICS + second as usize) as u32)
    }
}

impl MnemonicPairs {
    /// Adds a pair; whether it was not there.
    pub(super) fn add(&mut self, pair: Pair) -> bool {
        let (word, bit) = (pair.0 as usize / 64, pair.0 % 64);
        self.0.resize(WORDS, 0);
        let new = self.0[word] >> bit & 1 == 0;
        self.0[word] |= 1 << bit;
        new
    }

    /// Adds all of another set.
    pub(super) fn add_all(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Reads the set of a campaign's folder, which is empty if there is no file.
    pub(super) fn read(folder: &Path) -> Result<Self, FileError> {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            result => result.map_err(at(&path))?,
        };
        let (words, rest) = bytes.as_chunks();
        if !rest.is_empty() || ![0, WORDS].contains(&words.len()) {
            return Err(at(&path)(io::Error::other("is no set of pairs of mnemonics")));
        }
        Ok(Self(words.iter().map(|word| u64::from_le_bytes(*word)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted_once_and_survive_their_file() {
        let mut pairs = MnemonicPairs::default();
        let last = Mnemonic::values().last().expect("there are some");
        assert!((last as usize) < MNEMONICS);
        for (first, second) in
            [(Mnemonic::Add, Mnemonic::Sub), (Mnemonic::Sub, Mnemonic::Add), (last, last)]
        {
            assert!(pairs.add(Pair::new(first, second)));
            assert!(!pairs.add(Pair::new(first, second)));
        }
        assert_eq!(pairs.count(), 3);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(MnemonicPairs::read(folder.path()).unwrap().count(), 0);
        fs::write(folder.path().join(FILE), pairs.to_bytes()).unwrap();
        assert_eq!(MnemonicPairs::read(folder.path()).unwrap(), pairs);
        fs::write(folder.path().join(FILE), b"not that").unwrap();
        assert!(MnemonicPairs::read(folder.path()).is_err());
    }
}

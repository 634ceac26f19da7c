//! [`Pieces`]: input in records of one size, a head and then a piece for each scene. Each record gives a
//! stream of choices of its own, so that to drop, repeat, swap or change one leaves the choices of all
//! others alone. A record's first bytes are its choices; the last ones are a seed from which come those
//! behind them, zeros for the seed zero.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::choices::Choices;

/// Bytes of a record.
pub const PIECE_BYTES: usize = 16;
/// Records of one input; what lies behind has no effect.
pub const MOST_PIECES: usize = 24;

/// Bytes of a record that are choices themselves.
const LITERAL_BYTES: usize = 12;
/// Choices of a record, and of the head, which has a whole state to draw.
const STREAM_BYTES: usize = 320;
const HEAD_STREAM_BYTES: usize = 1024;

/// The streams of one input.
#[derive(Debug)]
pub(super) struct Pieces {
    head: Vec<u8>,
    scenes: Vec<Vec<u8>>,
}

impl Pieces {
    /// The streams of any bytes. The last record may be cut off; it is as if zeros followed.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut records = bytes.chunks(PIECE_BYTES).take(MOST_PIECES);
        Self {
            head: stream(records.next().unwrap_or_default(), HEAD_STREAM_BYTES),
            scenes: records.map(|record| stream(record, STREAM_BYTES)).collect(),
        }
    }

    /// Choices for what the scenes have in common.
    pub(super) fn head(&self) -> Choices<'_> {
        Choices::of(&self.head)
    }

    /// Choices for each scene.
    pub(super) fn scenes(&self) -> impl Iterator<Item = Choices<'_>> {
        self.scenes.iter().map(|stream| Choices::of(stream))
    }
}

fn stream(record: &[u8], length: usize) -> Vec<u8> {
    let (literal, rest) = record.split_at(record.len().min(LITERAL_BYTES));
    let mut seed = [0; 4];
    seed[..rest.len()].copy_from_slice(rest);
    let mut stream = vec![0; length];
    let seed = u32::from_le_bytes(seed);
    if seed != 0 {
        let mut generator = Xoshiro256PlusPlus::seed_from_u64(u64::from(seed));
        generator.fill_bytes(&mut stream);
        stream[..LITERAL_BYTES].fill(0);
    }
    stream[..literal.len()].copy_from_slice(literal);
    stream
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_changes_its_own_stream_alone() {
        let input: Vec<u8> = (1..=80).collect();
        let mut changed = input.clone();
        changed[40] ^= 1;
        let (before, after) = (Pieces::new(&input), Pieces::new(&changed));
        assert_eq!(before.head, after.head);
        let same: Vec<bool> =
            before.scenes.iter().zip(&after.scenes).map(|(left, right)| left == right).collect();
        assert_eq!(same, [true, false, true, true]);
        assert_eq!(before.scenes[1][12..], after.scenes[1][12..], "it has the same seed");
    }

    #[test]
    fn without_a_seed_zeros_follow() {
        let pieces = Pieces::new(&[7; 20]);
        assert_eq!(pieces.scenes.len(), 1);
        assert_eq!(pieces.scenes[0][..6], [7, 7, 7, 7, 0, 0]);
        assert!(pieces.scenes[0][6..].iter().all(|byte| *byte == 0));
        assert!(Pieces::new(&[]).scenes.is_empty());
    }
}

//! Mutations that know what an input consists of: whole records, operations or instructions are dropped,
//! repeated, swapped and changed, and of an input that is the text of a case the case is changed.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::target::case_in_text;
use crate::case::{Action, Case, text};
use crate::guest::{GuestAddress, decoder};

/// Where an input may be cut.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cut {
    /// Anywhere.
    Bytes,
    /// Between records of one size. The first `head` ones stay where they are.
    Records { size: usize, most: usize, head: usize },
    /// Between instructions, of at most so many bytes together.
    Instructions { most: usize },
}

/// Mutations made one behind the other at most.
const MOST_AT_ONCE: usize = 3;
/// Bytes from RIP on that a mutation of a case changes.
const FIRST_CODE: usize = 64;

/// See [`super::Target::mutate`].
pub(super) fn mutate(cut: Cut, data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let random = &mut Random::new(seed);
    let input = &data[..size];
    let output = match case_in_text(input) {
        Some(case) => {
            let text = text::print_bare(&mutated_case(case, random)).into_bytes();
            if text.len() <= max_size { text } else { input[..size.min(max_size)].to_vec() }
        }
        None => {
            let mut pieces = cut.pieces(input);
            for _ in 0..=random.below(MOST_AT_ONCE) {
                change(cut, &mut pieces, random);
            }
            cut.join(pieces, max_size)
        }
    };
    data[..output.len()].copy_from_slice(&output);
    output.len()
}

/// See [`super::Target::cross_over`]. A text stays as it is.
pub(super) fn cross_over(
    cut: Cut,
    first: &[u8],
    second: &[u8],
    out: &mut [u8],
    seed: u32,
) -> usize {
    let random = &mut Random::new(seed);
    let output = if case_in_text(first).is_some() || case_in_text(second).is_some() {
        if first.len() <= out.len() { first.to_vec() } else { Vec::new() }
    } else {
        let (mut pieces, mut others) = (cut.pieces(first), cut.pieces(second));
        let head = cut.head().min(pieces.len());
        pieces.truncate(head + random.below(pieces.len() - head + 1));
        let head = cut.head().min(others.len());
        let from = head + random.below(others.len() - head + 1);
        pieces.extend(others.drain(from..));
        cut.join(pieces, out.len())
    };
    out[..output.len()].copy_from_slice(&output);
    output.len()
}

impl Cut {
    fn head(self) -> usize {
        match self {
            Self::Records { head, .. } => head,
            Self::Bytes | Self::Instructions { .. } => 0,
        }
    }

    fn pieces(self, input: &[u8]) -> Vec<Vec<u8>> {
        match self {
            Self::Bytes => input.iter().map(|byte| vec![*byte]).collect(),
            Self::Records { size, most, .. } => {
                let records = input.chunks(size).take(most);
                records.map(|record| padded(record, size)).collect()
            }
            Self::Instructions { most } => instructions(&input[..input.len().min(most)]),
        }
    }

    /// As many whole pieces as fit.
    fn join(self, pieces: Vec<Vec<u8>>, max_size: usize) -> Vec<u8> {
        let most = match self {
            Self::Bytes => max_size,
            Self::Records { size, most, .. } => max_size.min(size * most),
            Self::Instructions { most } => max_size.min(most),
        };
        let mut output = Vec::new();
        for piece in pieces {
            if output.len() + piece.len() > most {
                break;
            }
            output.extend(piece);
        }
        output
    }

    fn fresh(self, random: &mut Random) -> Vec<u8> {
        match self {
            Self::Bytes => vec![random.byte()],
            Self::Records { size, .. } => (0..size).map(|_| random.byte()).collect(),
            Self::Instructions { .. } => fresh_instruction(random),
        }
    }
}

fn padded(record: &[u8], size: usize) -> Vec<u8> {
    let mut record = record.to_vec();
    record.resize(size, 0);
    record
}

fn instructions(input: &[u8]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let length = decoder(rest, 0).decode().len();
        let (piece, behind) = rest.split_at(length.clamp(1, rest.len()));
        pieces.push(piece.to_vec());
        rest = behind;
    }
    pieces
}

/// An instruction of the kinds that raw bytes seldom are: writes to what is executed, and branches.
fn fresh_instruction(random: &mut Random) -> Vec<u8> {
    let near = random.byte() % 96;
    let value = random.byte();
    match random.below(14) {
        // mov and add dword [rip + near], constant
        0 => vec![0xc7, 0x05, near, 0, 0, 0, 0x90, 0x48, 0xff, value],
        1 => vec![0x81, 0x05, near, 0, 0, 0, value, 0, 0, 0],
        // mov, xor and inc byte [r14 + near]
        2 => vec![0x41, 0xc6, 0x46, near, value],
        3 => vec![0x41, 0x80, 0x76, near, value],
        4 => vec![0x41, 0xfe, 0x46, near],
        // mov [rip + near], rax; mov eax, constant; add rbp, constant
        5 => vec![0x48, 0x89, 0x05, near, 0, 0, 0],
        6 => vec![0xb8, value, 0, 0, 0],
        7 => vec![0x48, 0x83, 0xc5, value],
        // jnz, call, ret, jmp r15, call r14
        8 => vec![0x75, near],
        9 => vec![0xe8, near, 0, 0, 0],
        10 => vec![0xc3],
        11 => vec![0x41, 0xff, 0xe7],
        12 => vec![0x41, 0xff, 0xd6],
        // rep movsb
        _ => vec![0xf3, 0xa4],
    }
}

/// One change of one input.
fn change(cut: Cut, pieces: &mut Vec<Vec<u8>>, random: &mut Random) {
    let head = cut.head();
    let free = pieces.len().saturating_sub(head);
    let kind = random.below(12);
    if pieces.len() < head || free == 0 || kind == 0 {
        let place = pieces.len().min(head + random.below(free + 1));
        return pieces.insert(place, cut.fresh(random));
    }
    let (one, other) = (head + random.below(free), head + random.below(free));
    match kind {
        1 => drop(pieces.remove(one)),
        2 => pieces.insert(other, pieces[one].clone()),
        3 => pieces.swap(one, other),
        4 => {
            let moved = pieces.remove(one);
            pieces.insert(other.min(pieces.len()), moved);
        }
        5 => {
            let run = pieces[one.min(other)..=one.max(other)].to_vec();
            pieces.extend(run);
        }
        6 => pieces[one] = cut.fresh(random),
        // The first byte of a record says what it is, the last ones are its seed.
        7 => pieces[one][0] = random.byte(),
        8 => {
            let last = pieces[one].len().saturating_sub(4);
            pieces[one][last..].fill_with(|| random.byte());
        }
        _ => {
            let any = random.below(pieces.len());
            let piece = &mut pieces[any];
            let place = random.below(piece.len());
            piece[place] = match random.below(3) {
                0 => piece[place] ^ 1 << random.below(8),
                1 => piece[place].wrapping_add(random.byte() % 9).wrapping_sub(4),
                _ => random.byte(),
            };
        }
    }
}

/// A change of a case, if there is one that leaves it valid.
fn mutated_case(case: Case, random: &mut Random) -> Case {
    for _ in 0..4 {
        let mut changed = case.clone();
        change_case(&mut changed, random);
        if changed != case && changed.validate().is_ok() {
            return changed;
        }
    }
    case
}

fn change_case(case: &mut Case, random: &mut Random) {
    let events = case.events.len();
    match random.below(8) {
        0 if events > 0 => drop(case.events.remove(random.below(events))),
        1 if events > 0 => {
            let event = case.events[random.below(events)].clone();
            case.events.insert(random.below(events), event);
        }
        2 if events > 0 => case.events.swap(random.below(events), random.below(events)),
        3 if events > 0 => {
            let event = &mut case.events[random.below(events)];
            if let Some(last) = event.actions.len().checked_sub(1) {
                let other = random.below(last + 1);
                event.actions.swap(last, other);
                event.actions.truncate(last);
            }
        }
        4 if events > 0 => {
            let event = &mut case.events[random.below(events)];
            for action in &mut event.actions {
                if let Action::Write { bytes, .. } = action {
                    let place = random.below(bytes.len());
                    bytes[place] = random.byte();
                }
            }
        }
        5 => case.state.gpr[random.below(16)] = random.word(),
        _ => change_code(case, random),
    }
}

/// Changes one of the bytes that are executed first.
fn change_code(case: &mut Case, random: &mut Random) {
    let start = GuestAddress(case.state.rip);
    let Some(mapping) = case.mappings.iter().find(|mapping| mapping.range.contains(start)) else {
        return;
    };
    let offset = mapping.offset + (start.0 - mapping.range.start().0);
    let contents = &mut case.objects[mapping.object.0].contents;
    if let Some(byte) = contents.get_mut(offset as usize + random.below(FIRST_CODE)) {
        *byte = random.byte();
    }
}

struct Random(Xoshiro256PlusPlus);

impl Random {
    fn new(seed: u32) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(u64::from(seed)))
    }

    fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn byte(&mut self) -> u8 {
        self.word() as u8
    }

    /// A number in `0..count`; zero if there is none.
    fn below(&mut self, count: usize) -> usize {
        (self.word() >> 32) as usize % count.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Target;
    use super::*;
    use crate::generate::{PIECE_BYTES, choices};

    const TARGETS: [Target; 4] =
        [Target::SmcRemap, Target::RawBytes, Target::Mapping, Target::Concurrent];

    fn input(number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        choices(0x3074, number, &mut bytes);
        bytes.truncate(number as usize * 7 % 300);
        bytes
    }

    fn mutated(target: Target, input: &[u8], max_size: usize, seed: u32) -> Vec<u8> {
        let mut data = input.to_vec();
        data.resize(input.len().max(max_size), 0xee);
        let size = target.mutate(&mut data, input.len(), max_size, seed);
        assert!(size <= max_size, "{size} of {max_size}");
        data.truncate(size);
        data
    }

    #[test]
    fn mutations_are_inputs_again() {
        for target in TARGETS {
            let mut changed = 0;
            for number in 0..600 {
                let input = input(number);
                let max_size = if number % 3 == 0 { input.len() / 2 } else { 400 };
                let output = mutated(target, &input, max_size, number as u32);
                assert_eq!(output, mutated(target, &input, max_size, number as u32));
                changed += usize::from(output != input);
                assert_eq!(target.case_of(&output).is_ok(), target.is_of_cases());
            }
            assert!(changed > 550, "{changed} of 600 mutations of {} change it", target.name());
        }
    }

    #[test]
    fn records_stay_whole() {
        let input = input(40);
        for seed in 0..500 {
            let output = mutated(Target::SmcRemap, &input, 400, seed);
            assert_eq!(output.len() % PIECE_BYTES, 0);
        }
    }

    #[test]
    fn two_inputs_make_one() {
        for target in TARGETS {
            for seed in 0..200 {
                let (first, second) = (input(u64::from(seed)), input(u64::from(seed) + 1));
                let mut out = vec![0; seed as usize * 2];
                let size = target.cross_over(&first, &second, &mut out, seed);
                assert!(size <= out.len());
                assert_eq!(target.case_of(&out[..size]).is_ok(), target.is_of_cases());
            }
        }
    }

    #[test]
    fn a_mutated_text_is_a_case() {
        let case = Target::SmcRemap.case_of(&input(41)).unwrap();
        let text = text::print(&case).into_bytes();
        let mut changed = 0;
        for seed in 0..100 {
            let output = mutated(Target::SmcRemap, &text, 1 << 17, seed);
            let other = case_in_text(&output).expect("it is the text of a case");
            changed += usize::from(other != case);
        }
        assert!(changed > 80, "{changed} of 100");
    }
}

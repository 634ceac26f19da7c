//! Programs whose bytes are the input itself, in a memory and a state that are always the same: code that
//! lies across two pages and may be written, at a second address too, registers that point to data, stack
//! and the code.

use super::Generator;
use super::choices::mix;
use super::layout::{CODE, Layout, LayoutKind};
use super::raw::{HALT, complete_code};
use crate::case::Case;
use crate::guest::PAGE_SIZE;

/// Bytes of a program; what lies behind has no effect.
pub const MOST_LITERAL: usize = 512;

/// Bytes before the border between the two pages of code.
const BEFORE_BORDER: u64 = 48;

const LAYOUT: Layout = Layout {
    kind: LayoutKind::Straddle,
    code: 0x1_4000_0000,
    code_writable: true,
    code_aliased: true,
};

/// The case that executes `bytes`, but for instructions that are refused, which are no-operations.
pub(super) fn generate(generator: &Generator, bytes: &[u8]) -> Case {
    let mut bytes = bytes[..bytes.len().min(MOST_LITERAL)].to_vec();
    let entry = LAYOUT.code + PAGE_SIZE - BEFORE_BORDER;
    complete_code(generator, entry, &mut bytes, &mut Vec::new());
    let mut case = Case { mappings: LAYOUT.mappings(), ..Case::default() };
    case.objects = LAYOUT.objects(HALT, |length| {
        (0..length as u64 / 8).flat_map(|number| mix(number % 64).to_le_bytes()).collect()
    });
    let offset = (entry - LAYOUT.code) as usize;
    case.objects[CODE.0].contents[offset..offset + bytes.len()].copy_from_slice(&bytes);
    fill_state(&mut case, entry);
    case
}

/// The bytes that give `case`, if there are any.
pub(super) fn bytes_of(generator: &Generator, case: &Case) -> Option<Vec<u8>> {
    let offset = (PAGE_SIZE - BEFORE_BORDER) as usize;
    let code = case.objects.get(CODE.0)?.contents.get(offset..)?;
    let length = code.iter().rposition(|byte| *byte != HALT).map_or(0, |last| last + 1);
    let bytes = code[..length].to_vec();
    let nameless = Case { note: String::new(), ..case.clone() };
    (generate(generator, &bytes) == nameless).then_some(bytes)
}

fn fill_state(case: &mut Case, entry: u64) {
    let state = &mut case.state;
    let (data, stack) = (LAYOUT.data(), LAYOUT.stack() + PAGE_SIZE / 2);
    let near = data + 0x800;
    // RCX counts, R8 to R11 are numbers, R13 points to the end of the data, R14 and R15 to code.
    state.gpr = [
        2,
        3,
        data,
        near,
        stack,
        stack + 64,
        near + 0x100,
        near + 0x200, // RAX to RDI
        1,
        u64::MAX,
        0x8000_0000,
        0x7fff_ffff_ffff_ffff,
        near,
        data + 2 * PAGE_SIZE - 16,
        entry,
        entry + BEFORE_BORDER - 4,
    ];
    state.rip = entry;
    state.fs_base = data;
    state.gs_base = near;
    for (number, vector) in state.vector.iter_mut().enumerate().take(16) {
        vector[..2].copy_from_slice(&[mix(number as u64), number as u64]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::HostFeatures;

    #[test]
    fn the_bytes_of_a_case_give_the_case() {
        let generator = Generator::new(&HostFeatures::detect());
        let (mut bytes, mut other) = (Vec::new(), 0);
        for number in 0..500 {
            super::super::choices(0xb17e5, number, &mut bytes);
            let case = generate(&generator, &bytes[..number as usize]);
            assert_eq!(case.validate(), Ok(()));
            let back = bytes_of(&generator, &case);
            assert_eq!(back.map(|bytes| generate(&generator, &bytes)), Some(case.clone()));
            let changed = Case { limit: Some(7), ..case };
            other += usize::from(bytes_of(&generator, &changed).is_none());
        }
        assert_eq!(other, 500, "a case with a limit has no bytes");
    }
}

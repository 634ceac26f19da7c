//! Flat binaries and hand-made ELF files become cases, and malformed ones are refused by name.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use proptest::prelude::*;
use tregion::case::image::{DEFAULT_STACK_SIZE, ImageError, elf, flat};
use tregion::case::{Case, text};
use tregion::guest::{GuestAddress, Permissions};

const STACK: u64 = 0x2000;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const R: u32 = 4;
const W: u32 = 2;
const X: u32 = 1;

/// A program header with its bytes.
#[derive(Clone, Debug)]
struct Program {
    kind: u32,
    flags: u32,
    address: u64,
    bytes: Vec<u8>,
    size: u64,
}

fn program(kind: u32, flags: u32, address: u64, bytes: &[u8]) -> Program {
    Program { kind, flags, address, bytes: bytes.to_vec(), size: bytes.len() as u64 }
}

fn load(flags: u32, address: u64, bytes: &[u8]) -> Program {
    program(PT_LOAD, flags, address, bytes)
}

/// An ELF file with these program headers and nothing else.
fn file(kind: u16, entry: u64, programs: &[Program]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let count = programs.len() as u16;
    file.extend([kind.to_le_bytes(), 62_u16.to_le_bytes()].concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64, 56, count, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = 64 + 56 * u64::from(count);
    for program in programs {
        file.extend([program.kind, program.flags].map(u32::to_le_bytes).concat());
        let length = program.bytes.len() as u64;
        let words = [offset, program.address, program.address, length, program.size, 0x1000];
        file.extend(words.map(u64::to_le_bytes).concat());
        offset += length;
    }
    programs.iter().for_each(|program| file.extend(&program.bytes));
    file
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Start, size and permissions of each mapping but the stack.
fn image(case: &Case) -> Vec<(u64, u64, Permissions)> {
    let (_, image) = case.mappings.split_last().expect("a stack");
    image.iter().map(|it| (it.range.start().0, it.range.size(), it.permissions)).collect()
}

fn bytes_at(case: &Case, address: u64, length: usize) -> &[u8] {
    &case.initial_bytes(GuestAddress(address)).expect("mapped")[..length]
}

#[test]
fn a_flat_binary_runs_from_its_base() {
    let case = flat(&[0x90, 0xf4], GuestAddress(0x1_0ffe), 1).expect("a case");
    assert_eq!(case.validate(), Ok(()));
    assert_eq!(case.state.rip, 0x1_0ffe);
    assert_eq!(image(&case), [(0x1_0000, 0x1000, Permissions::ReadWriteExecute)]);
    assert_eq!(bytes_at(&case, 0x1_0ffe, 2), [0x90, 0xf4]);
    let stack = case.mappings[1];
    assert_eq!((stack.range.size(), stack.permissions), (0x1000, Permissions::ReadWrite));
    assert_eq!(case.state.gpr[4], stack.range.last().0 - 15);
    assert_eq!(text::parse(&text::print(&case)), Ok(case));
}

#[test]
fn a_flat_binary_that_does_not_fit_is_refused() {
    let base = GuestAddress(0x1000);
    assert_eq!(flat(&[], base, STACK), Err(ImageError::Empty));
    assert_eq!(flat(&[0xf4], base, 0), Err(ImageError::NoStack));
    assert_eq!(flat(&[0xf4], base, u64::MAX), Err(ImageError::TooLarge(64 << 20)));
    assert_eq!(flat(&[0xf4], base, 64 << 20), Err(ImageError::TooLarge(64 << 20)));
    assert_eq!(flat(&vec![0xf4; 65 << 20], base, STACK), Err(ImageError::TooLarge(64 << 20)));
    let last = GuestAddress(u64::MAX);
    assert_eq!(flat(&[0x90, 0xf4], last, STACK), Err(ImageError::Wraps(last)));
    assert!(flat(&[0xf4], last, (64 << 20) - 0x1000).is_ok());
}

#[test]
fn the_stack_avoids_the_image() {
    let size = DEFAULT_STACK_SIZE;
    let usual = flat(&[0xf4], GuestAddress(0x1000), size).expect("a case").mappings[1].range;
    for base in [usual.start(), usual.last(), usual.start().wrapping_add(0x5000)] {
        let case = flat(&[0xf4], base, size).expect("a case");
        assert!(!case.mappings[1].range.overlaps(usual), "{base}");
    }
}

#[test]
fn a_static_executable_is_laid_out_by_pages() {
    let mut data = load(R | W, 0x40_2010, &[1, 2, 3]);
    data.size = 0x2000;
    let code = load(R | X, 0x40_1000, &[0xf4]);
    let file = file(ET_EXEC, 0x40_1000, &[data, load(R, 0x40_0000, &[7]), code]);
    let case = elf(&file, STACK).expect("a case");
    assert_eq!(case.state.rip, 0x40_1000);
    let expected = [
        (0x40_0000, 0x1000, Permissions::Read),
        (0x40_1000, 0x1000, Permissions::ReadExecute),
        (0x40_2000, 0x3000, Permissions::ReadWrite),
    ];
    assert_eq!(image(&case), expected);
    assert_eq!(bytes_at(&case, 0x40_0000, 2), [7, 0]);
    assert_eq!(bytes_at(&case, 0x40_2010, 4), [1, 2, 3, 0]);
}

#[test]
fn a_page_of_several_segments_is_allowed_what_any_of_them_is() {
    let programs = [load(R | X, 0x1000, &[0xf4]), load(R | W, 0x1800, &[5; 0x1000])];
    let case = elf(&file(ET_EXEC, 0x1000, &programs), STACK).expect("a case");
    let expected =
        [(0x1000, 0x1000, Permissions::ReadWriteExecute), (0x2000, 0x1000, Permissions::ReadWrite)];
    assert_eq!(image(&case), expected);
    assert_eq!(bytes_at(&case, 0x1000, 2), [0xf4, 0]);
    assert_eq!(bytes_at(&case, 0x1ffe, 2), [5, 5]);
    assert_eq!(bytes_at(&case, 0x27fe, 4), [5, 5, 0, 0]);
}

/// A position-independent file whose dynamic section says `dynamic` and is in a segment at 0x2000,
/// with `table` behind it at 0x2100.
fn position_independent(dynamic: &[u64], table: &[u64]) -> Vec<u8> {
    let mut data = words(dynamic);
    let section = program(PT_DYNAMIC, R, 0x2000, &data);
    data.resize(0x100, 0);
    data.extend(words(table));
    let mut data = load(R | W, 0x2000, &data);
    data.size = 0x1000;
    file(ET_DYN, 0x1000, &[load(R | X, 0x1000, &[0xf4]), data, section])
}

#[test]
fn a_static_pie_is_relocated() {
    let table = [0x2ff8, 8, 0x1234, 0x2200, 37, 0];
    let dynamic = [7, 0x2100, 8, 48, 9, 24, 0, 0, 1, 1];
    let case = elf(&position_independent(&dynamic, &table), STACK).expect("a case");
    assert_eq!(case.state.rip, 0x40_1000);
    assert_eq!(bytes_at(&case, 0x40_2ff8, 8), 0x40_1234_u64.to_le_bytes());
    assert_eq!(bytes_at(&case, 0x40_2200, 8), [0; 8]);
}

#[test]
fn relocations_that_cannot_be_applied_are_refused() {
    let try_pie = |dynamic: &[u64], table: &[u64]| {
        elf(&position_independent(dynamic, table), STACK).expect_err("an error")
    };
    assert_eq!(try_pie(&[7, 0x2100, 8, 24, 0, 0], &[0, 6, 0]), ImageError::Relocation(6));
    assert_eq!(try_pie(&[1, 1, 0, 0], &[]), ImageError::Dynamic);
    assert_eq!(try_pie(&[36, 0x2100, 0, 0], &[]), ImageError::PackedRelocations);
    for (dynamic, table) in [
        ([7, 0x2100, 8, 24, 0, 0], [0x2ff9, 8, 0]),
        ([7, 0x3000, 8, 24, 0, 0], [0; 3]),
        ([7, 0x2100, 8, u64::MAX, 0, 0], [0; 3]),
        ([7, u64::MAX - 0x40_0008, 8, 24, 0, 0], [0; 3]),
    ] {
        assert!(matches!(try_pie(&dynamic, &table), ImageError::Malformed(_)), "{dynamic:x?}");
    }
}

#[test]
fn what_is_no_static_executable_is_refused_by_name() {
    let code = load(R | X, 0x1000, &[0xf4]);
    let good = file(ET_EXEC, 0x1000, std::slice::from_ref(&code));
    assert!(elf(&good, STACK).is_ok());
    let with = |offset: usize, value: u8| {
        let mut file = good.clone();
        file[offset] = value;
        elf(&file, STACK).expect_err("an error")
    };
    assert_eq!(elf(b"", STACK), Err(ImageError::NotElf));
    assert_eq!(with(0, 0), ImageError::NotElf);
    assert_eq!(with(4, 1), ImageError::WrongClass);
    assert_eq!(with(5, 2), ImageError::WrongClass);
    assert_eq!(with(16, 1), ImageError::WrongType(1));
    assert_eq!(with(18, 3), ImageError::WrongMachine(3));
    assert!(matches!(with(33, 0xff), ImageError::Malformed(_)), "program headers out of the file");
    assert!(matches!(elf(&good[..good.len() - 1], STACK), Err(ImageError::Malformed(_))));
    assert!(matches!(elf(&good[..40], STACK), Err(ImageError::Malformed(_))));
    let interpreter = program(PT_INTERP, R, 0, b"/lib/ld.so\0");
    let file = file(ET_DYN, 0x1000, &[code, interpreter]);
    assert_eq!(elf(&file, STACK), Err(ImageError::Dynamic));
}

#[test]
fn segments_that_cannot_be_mapped_are_refused_by_name() {
    let try_elf = |entry, programs: &[Program]| {
        elf(&file(ET_EXEC, entry, programs), STACK).expect_err("an error")
    };
    let code = load(R | X, 0x1000, &[0xf4; 16]);
    let sized = |address, size| Program { address, size, ..code.clone() };
    let at = GuestAddress;
    assert_eq!(try_elf(0, &[]), ImageError::Empty);
    assert_eq!(try_elf(0x2000, std::slice::from_ref(&code)), ImageError::Entry(at(0x2000)));
    assert_eq!(try_elf(0x1000, &[load(R | W, 0x1000, &[1])]), ImageError::Entry(at(0x1000)));
    assert_eq!(try_elf(0, &[load(W, 0x1000, &[1])]), ImageError::Unreadable(at(0x1000)));
    assert_eq!(try_elf(0, &[load(X, 0x1000, &[1])]), ImageError::Unreadable(at(0x1000)));
    assert_eq!(try_elf(0, &[sized(0x1000, 15)]), ImageError::SegmentSize(at(0x1000)));
    assert_eq!(try_elf(0, &[sized(0x1000, 0)]), ImageError::SegmentSize(at(0x1000)));
    assert_eq!(try_elf(0, &[sized(!15, 17)]), ImageError::Wraps(at(!15)));
    assert_eq!(try_elf(0, &[sized(0x1000, 1 << 40)]), ImageError::TooLarge(64 << 20));
    let large = [sized(0x1000, 40 << 20), sized(1 << 32, 40 << 20)];
    assert_eq!(try_elf(0x1000, &large), ImageError::TooLarge(64 << 20));
    let overlapping = [sized(0x100f, 16), code.clone()];
    assert_eq!(try_elf(0, &overlapping), ImageError::Overlap(at(0x1000), at(0x100f)));
    let many: Vec<Program> = (1..1025).map(|page| sized(page << 13, 16)).collect();
    assert!(matches!(try_elf(1 << 13, &many), ImageError::Invalid(_)));
}

/// The files that are damaged.
fn sound_files() -> Vec<Vec<u8>> {
    let mut data = load(R | W, 0x40_2010, &[1, 2, 3]);
    data.size = 0x2000;
    let fixed = file(ET_EXEC, 0x40_1000, &[load(R | X, 0x40_1000, &[0xf4]), data]);
    let dynamic = [7, 0x2100, 8, 48, 9, 24, 0, 0];
    vec![fixed, position_independent(&dynamic, &[0x2ff8, 8, 1, 0x2200, 8, 2])]
}

/// Any file is refused or makes a valid case.
fn check_file(file: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(case) = elf(file, STACK) {
        prop_assert_eq!(case.validate(), Ok(()));
    }
    Ok(())
}

proptest! {
    #[test]
    fn arbitrary_files_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_file(&bytes)?;
        check_file(&[&sound_files()[0][..20], &bytes].concat())?;
    }

    #[test]
    fn damaged_files_are_survived(
        file in prop::sample::select(sound_files()),
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![Just(0), Just(0xff), any::<u8>()]),
            0..6,
        ),
        length in any::<prop::sample::Index>(),
        cut in prop::bool::weighted(0.1),
    ) {
        let mut file = file;
        for (index, byte) in edits {
            let index = index.index(file.len());
            file[index] = byte;
        }
        if cut {
            file.truncate(length.index(file.len()));
        }
        check_file(&file)?;
    }

    #[test]
    fn any_alignment_will_do(shift in 0..8_usize) {
        let file = &sound_files()[1];
        let shifted = [&vec![0; shift][..], file].concat();
        prop_assert_eq!(elf(&shifted[shift..], STACK), elf(file, STACK));
    }
}

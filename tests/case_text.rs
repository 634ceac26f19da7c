//! The text form of a case: what is printed can be read back, is readable, and whatever is wrong in
//! a file is reported at its place.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

#[path = "case_text/strategy.rs"]
mod strategy;

use proptest::prelude::*;
use tregion::case::{Action, Case, Event, Mapping, Object, ObjectId, Trigger, text};
use tregion::guest::{F80, GuestAddress, GuestRange, Permissions, RFLAGS_DEFAULT};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/example.case");

fn mapping(at: u64, object: usize, permissions: Permissions) -> Mapping {
    let range = GuestRange::new(GuestAddress(at), 0x1000).expect("a page");
    Mapping { range, object: ObjectId(object), offset: 0, permissions }
}

/// A case with something of everything.
fn example() -> Case {
    let mut case = Case { limit: Some(100), ..Case::default() };
    case.note = "imul leaves ZF as it was;\n\"hlt\" rewrites the loop".to_owned();
    case.objects = vec![Object::zeroed("code", 1), Object::zeroed("data", 1)];
    let code = [
        0x48, 0x01, 0xd8, 0x48, 0x0f, 0xaf, 0xc3, 0x75, 0xf7, 0xf4, 0xb8, 0, 0, 0, 0, 0xc5, 0xfd,
        0x6f, 0x05, 0xe9, 0x0f, 0, 0, 0x06,
    ];
    case.objects[0].contents[..code.len()].copy_from_slice(&code);
    case.objects[0].contents[0xffe..].copy_from_slice(&[0x48, 0x8b]);
    case.objects[1].contents[..5].copy_from_slice(b"hello");
    case.objects[1].contents[0x13] = 1;
    case.mappings = vec![
        mapping(0x40_1000, 0, Permissions::ReadExecute),
        mapping(0x40_2000, 1, Permissions::ReadWrite),
        mapping(0x7fff_0000, 0, Permissions::ReadWrite),
    ];
    set_registers(&mut case);
    case.events = events();
    case.validate().expect("a valid case");
    case
}

fn set_registers(case: &mut Case) {
    let state = &mut case.state;
    (state.rip, state.rflags) = (0x40_1000, RFLAGS_DEFAULT | 0x44);
    (state.gpr[0], state.gpr[3], state.gpr[4]) = (1, u64::MAX, 0x40_2ff0);
    (state.fs_base, state.mxcsr) = (0x7f00_0000_0000, 0x9fc0);
    (state.x87.status, state.x87.tag) = (7 << 11, 0x80);
    state.x87.st[0] = F80 { significand: 0xc000_0000_0000_0000, sign_exponent: 0xbfff };
    state.vector[0] = [1, 2, 0, 0, 0, 0, 0, 0];
    state.vector[1] = [1, 0, 3, 0, 0, 0, 0, 0];
    state.vector[31] = [1, 2, 3, 4, 5, 6, 7, 8];
    state.opmask[1] = 0xff;
}

fn events() -> Vec<Event> {
    let range = |start| GuestRange::new(GuestAddress(start), 0x1000).expect("a page");
    let write = |at, bytes: &[u8]| Action::Write { address: GuestAddress(at), bytes: bytes.into() };
    let to = GuestAddress;
    vec![
        Event {
            trigger: Trigger::Halt,
            actions: vec![
                write(0x40_1000, &[0x90; 3]),
                write(0x7fff_0007, &[0xeb, 0xf7]),
                write(0x40_2000, &[0xaa; 40]),
            ],
        },
        Event {
            trigger: Trigger::Breakpoint(to(0x40_100a)),
            actions: vec![
                Action::Protect { range: range(0x40_2000), permissions: Permissions::Read },
                Action::Alias { source: range(0x40_1000), destination: to(0x50_0000) },
                Action::Remap { source: range(0x40_2000), destination: to(0x50_1000) },
                Action::Unmap(range(0x50_0000)),
                Action::Map(mapping(0x60_0000, 0, Permissions::ReadWriteExecute)),
                Action::ExitRequest,
            ],
        },
        Event { trigger: Trigger::Count(3), actions: vec![] },
    ]
}

/// `UPDATE_GOLDEN=1 cargo test` writes the file anew.
#[test]
fn golden() {
    let printed = text::print(&example());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &printed).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(GOLDEN).expect("the golden file is there");
    assert_eq!(printed, golden);
    assert_eq!(text::parse(&golden), Ok(example()));
}

#[test]
fn what_is_not_valid_can_be_printed() {
    let mut case = example();
    case.mappings.push(mapping(0x40_1000, 9, Permissions::ReadExecute));
    case.mappings[0].offset = u64::MAX << 12;
    case.objects[0].contents.truncate(3);
    case.objects[1].contents.clear();
    case.state.selectors.0[0] = 3;
    case.state.pkru = 0;
    assert!(text::parse(&text::print(&case)).is_err());
}

/// The smallest case.
const EMPTY: &str = "format = 1\nmode = 64\n";

#[test]
fn hand_written_variants() {
    let parse = |rest: &str| text::parse(&format!("{EMPTY}{rest}")).expect("a valid case");
    assert_eq!(parse(""), Case::default());
    assert_eq!(parse("registers.rax = 5").state.gpr[0], 5);
    let hex = parse("[[object]]\nname = 'a'\nsize = 4096\nbytes = ['0x2: 0102', '0x0: 48 01']");
    assert_eq!(hex.objects[0].contents[..4], [0x48, 1, 1, 2]);
    let exit = parse("[[event]]\nwhen = { count = 0x10 }\ndo = [{ exit-request = {} }]");
    assert_eq!(exit.events[0].trigger, Trigger::Count(16));
    assert_eq!(exit.events[0].actions, [Action::ExitRequest]);
}

/// What is put in place of what in the golden file; where the complaint is to be; part of it.
/// The place is that of the character `^` stands for, which is not part of the text.
const WRONG: &[(&str, &str, &str)] = &[
    ("format = 1", "format = ^2", "unknown format 2"),
    ("format = 1", "^form = 1", "unknown key `form`"),
    ("format = 1\n", "", "`format` is missing"),
    ("mode = 64", "mode = ^32", "unknown mode 32"),
    ("limit = 100", "limit = ^0", "is zero"),
    ("limit = 100", "limit = ^-1", "expected an unsigned 64-bit integer, found the integer -1"),
    ("limit = 100", "limit = ^99999999999999999999", "unsigned 64-bit integer"),
    ("limit = 100", "limit = ^\"100\"", "expected an integer, found the string \"100\""),
    ("limit = 100", "limit = ^1x", "must be quoted"),
    ("limit = 100", "limit = 1\n^limit = 2", "duplicate key"),
    ("[registers]", "[registers]\n^eax = 1", "unknown key `eax`"),
    ("[registers]", "[registers]\nk7 = ^0x10000000000000000", "unsigned 64-bit"),
    ("[registers]", "[registers]\npkru = ^0", "pkru cannot be chosen"),
    ("[registers]", "[registers]\nselectors = ^{ cs = 0x23 }", "selector cannot be chosen"),
    ("rflags = 0x246", "rflags = ^0x1246", "cannot be had in user mode"),
    ("fs_base = 0x7f0000000000", "fs_base = ^0x8000000000000000", "not canonical"),
    ("mxcsr = 0x9fc0", "mxcsr = ^0x19fc0", "must be zero"),
    ("opcode = 0x0", "opcode = ^0x800", "must be zero"),
    ("opcode = 0x0", "^op = 0x0", "unknown key `op`"),
    ("dp = 0x0", "dp = ^0x1000000000000", "not canonical"),
    ("tag = 0x80", "tag = ^0x180", "unsigned 8-bit"),
    ("\"bfff_c", "^\"bfff_", "4 and 16 hexadecimal digits"),
    ("\"bfff_c", "^\"bfff_+", "4 and 16 hexadecimal digits"),
    ("k1 = 0xff", "zmm0 = ^\"00\"", "vector register 0 is given twice"),
    ("ymm1 = \"0", "ymm1 = ^\"", "4 times 16"),
    ("name = \"code\"", "name = ^\"0\"", "is not a letter"),
    ("name = \"data\"", "name = ^\"code\"", "two objects are called `code`"),
    ("name = \"data\"\n", "", "`name` is missing"),
    ("name = \"data\"\nsize = 0x1000", "name = \"data\"\nsize = ^0x1001", "multiple of the page"),
    ("name = \"data\"\nsize = 0x1000", "name = \"data\"\nsize = ^0x4000000", "more than 0x4000000"),
    ("name = \"data\"\nsize = 0x1000", "name = \"data\"\nsize = ^0xffffffffffffffff", "more than"),
    ("\"0x000: 48 01 d8\"", "\"0x000: 48 ^1 d8\"", "odd digit"),
    ("\"0x000: 48 01 d8\"", "\"0x000: 48 0^g d8\"", "found `g`"),
    ("\"0x000: 48 01 d8\"", "\"0x000: 48 01 d8 ^é\"", "found `é`"),
    ("\"0x000: 48 01 d8\"", "^\"0x000:\"", "expected bytes"),
    ("\"0x000: 48 01 d8\"", "^\"48 01 d8\"", "expected a string `offset: bytes`"),
    ("\"0x000: 48 01 d8\"", "^\"0x+1: 48\"", "expected an offset"),
    ("\"0x000: 48 01 d8\"", "^\"11: 48\"", "expected an offset"),
    ("\"0x000: 48 01 d8\"", "^\"0x1000: 48\"", "do not lie in the object"),
    ("\"0x000: 48 01 d8\"", "^\"0xfff: 48 01 d8\"", "do not lie in the object"),
    ("\"0x000: 48 01 d8\"", "^\"0xffffffffffffffff: 48\"", "do not lie in the object"),
    ("\"0x000: 48 01 d8\"", "\"0x003: 48\"", "the byte at 0x3 is given twice"),
    ("\"0x000: 48 01 d8\"", "^1", "expected a string, found the integer 1"),
    ("at = 0x401000\n", "at = ^0x401001\n", "not a multiple of the page size"),
    ("at = 0x401000\nsize = 0x1000", "at = 0x401000\nsize = ^0x0", "empty"),
    ("at = 0x401000\nsize = 0x1000", "at = ^0xfffffffffffff000\nsize = 0x2000", "past the end"),
    ("object = \"data\"\noffset", "object = ^\"date\"\noffset", "expected the name of an object"),
    ("\"r-x\"", "^\"-wx\"", "unknown permissions `-wx`"),
    ("\"r-x\"", "^5", "expected a string"),
    ("when = \"hlt\"", "when = ^\"halt\"", "expected `\"hlt\"`"),
    ("when = \"hlt\"", "when = ^{}", "exactly one of `count` or `breakpoint`"),
    ("when = \"hlt\"", "when = ^{ count = 1, breakpoint = 1 }", "exactly one of"),
    ("when = \"hlt\"", "when = { ^counts = 1 }", "unknown key `counts`"),
    ("when = { count = 3 }", "when = { count = ^0 }", "is zero"),
    ("do = []", "do = ^{}", "expected an array, found a table"),
    ("do = []", "do = [^\"exit\"]", "expected `\"exit-request\"`"),
    ("do = []", "do = [{ exit-request = { ^a = 1 } }]", "unknown key `a`, expected nothing"),
    ("do = []", "do = [{ ^writes = 1 }]", "unknown key `writes`, expected `write`, `map`"),
    ("do = []", "do = [{ write = ^{ at = 0 } }]", "`bytes` is missing"),
    ("do = []", "do = [^{ write = { at = 0, bytes = \"00\" } }]", "not all of 1 bytes from 0x0"),
    ("do = []", "do = [^{ write = { at = 0x401000, bytes = \"\" } }]", "no bytes"),
    ("do = []", "do = [{ write = { at = 0x401000, bytes = \"00 ^-1\" } }]", "found `-`"),
    ("do = []", "do = [{ write = { at = 0x401000, bytes = [\"00\", \"^1\"] } }]", "odd digit"),
    ("do = []", "do = [^{ unmap = { at = 0, size = 0x1000 } }]", "not all of 4096 bytes from 0x0"),
    ("do = []", "do = [{ unmap = { at = 0, size = ^5 } }]", "not a multiple of the page size"),
    (
        "do = []",
        "do = [^{ alias = { from = 0x401000, size = 0x1000, to = 0x401000 } }]",
        "overlaps the mapping",
    ),
    (
        "do = []",
        "do = [^{ remap = { from = 0x401000, size = 0x1000, to = 0x1 } }]",
        "not a multiple of the page size",
    ),
    ("format = 1", "format = 1\n^= 2", ""),
];

fn place_of_caret(text: &str) -> Option<(usize, usize)> {
    let before = &text[..text.find('^')?];
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    Some((before.matches('\n').count() + 1, column))
}

#[test]
fn errors_are_reported_at_their_place() {
    let golden = text::print(&example());
    for (old, new, message) in WRONG {
        assert!(golden.contains(old), "{old:?} is not in the golden file");
        let marked = golden.replacen(old, new, 1);
        let error = text::parse(&marked.replacen('^', "", 1)).expect_err(new);
        assert!(error.message.contains(message), "{new:?}: {error}");
        if let Some(place) = place_of_caret(&marked) {
            assert_eq!((error.line, error.column), place, "{new:?}: {error}");
        }
    }
}

#[test]
fn table_errors_are_reported_at_the_table() {
    let object = "[[object]]\nname = \"a\"\nsize = 0x1000\n";
    let map = |at: &str, offset: &str| {
        let keys = format!("size = 0x1000\nobject = \"a\"\noffset = {offset}");
        format!("[[map]]\nat = {at}\n{keys}\npermissions = \"r--\"\n")
    };
    for (maps, line, message) in [
        (map("0x1000", "0x1000"), 6, "does not lie on whole pages of its object"),
        (map("0x1000", "0x1"), 6, "does not lie on whole pages of its object"),
        (map("0x1000", "0") + &map("0x1000", "0"), 12, "overlaps the mapping"),
        (map("0x1000", "0") + "[[map]]\n", 12, "`at` is missing"),
    ] {
        let error = text::parse(&format!("{EMPTY}{object}{maps}")).expect_err(message);
        assert!(error.message.contains(message), "{error}");
        assert_eq!((error.line, error.column), (line, 1), "{error}");
    }
}

#[test]
fn the_error_reads_well() {
    let error = text::parse("format = 1\nmode = \"64\"").expect_err("a string");
    assert_eq!(error.to_string(), "line 2, column 8: expected an integer, found the string \"64\"");
    assert_eq!(text::parse("").expect_err("nothing").to_string().lines().count(), 1);
}

#[test]
fn the_largest_case_is_read() {
    let sized = |pages| Case { objects: vec![Object::zeroed("a", pages)], ..Case::default() };
    let largest = sized(64 << 8);
    assert_eq!(largest.validate(), Ok(()));
    assert!(text::parse(&text::print(&largest)) == Ok(largest));
    assert!(sized((64 << 8) + 1).validate().is_err());
}

/// What may stand in a case file, and what may not.
const FRAGMENTS: [&str; 20] = [
    "\"",
    "\"\"\"",
    "'",
    "[",
    "]",
    "{",
    "}",
    "=",
    "\n",
    "0x",
    "-1",
    "0xffffffffffffffffff",
    "é",
    "\u{0}",
    "[[map]]\n",
    "size = 0x7fffffffffffffff\n",
    "do = []",
    ".",
    "#",
    "1e5",
];

/// Cuts `length` bytes at `at` (both fall on characters) and puts `fragment` there.
fn mutate(text: &str, at: prop::sample::Index, length: usize, fragment: &str) -> String {
    let boundary = |index: usize| (0..=index).rev().find(|&it| text.is_char_boundary(it));
    let start = boundary(at.index(text.len() + 1)).unwrap_or(0);
    let end = boundary(text.len().min(start + length)).unwrap_or(start).max(start);
    format!("{}{fragment}{}", &text[..start], &text[end..])
}

/// Any text is read or refused at a place inside it, and what is read is a valid case.
fn check_text(text: &str) -> Result<(), TestCaseError> {
    match text::parse(text) {
        Ok(case) => {
            prop_assert_eq!(case.validate(), Ok(()));
            prop_assert_eq!(text::parse(&text::print(&case)), Ok(case));
        }
        Err(error) => {
            let line = text.split('\n').nth(error.line - 1);
            prop_assert!(line.is_some_and(|line| error.column <= line.chars().count() + 1));
            prop_assert!(!error.message.is_empty());
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn round_trip(case in strategy::case()) {
        prop_assert_eq!(case.validate(), Ok(()));
        let printed = text::print(&case);
        let read = text::parse(&printed);
        prop_assert_eq!(read.as_ref(), Ok(&case), "{}", printed);
        prop_assert_eq!(&text::print(&case), &printed);
        let bare = text::print_bare(&case);
        prop_assert_eq!(text::parse(&bare), Ok(case));
    }

    #[test]
    fn arbitrary_text_is_survived(text in any::<String>()) {
        check_text(&text)?;
        check_text(&format!("{EMPTY}{text}"))?;
    }

    #[test]
    fn mutated_text_is_survived(
        case in strategy::case(),
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0..12_usize, prop::sample::select(&FRAGMENTS[..])),
            1..4,
        ),
    ) {
        let mut text = text::print(&case);
        for (at, length, fragment) in edits {
            text = mutate(&text, at, length, fragment);
        }
        check_text(&text)?;
    }

    #[test]
    fn changed_digits_are_survived(
        case in strategy::case(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 1..4),
    ) {
        let mut text = text::print(&case).into_bytes();
        let digits: Vec<usize> =
            (0..text.len()).filter(|&index| text[index].is_ascii_digit()).collect();
        for (index, digit) in edits {
            text[digits[index.index(digits.len())]] = digit;
        }
        check_text(&String::from_utf8(text).expect("digits were changed for digits"))?;
    }
}

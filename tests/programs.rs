//! Whole programs, written in C and compiled by this machine's compiler, on engines: what silicon
//! makes of them is what the same computation in Rust comes to, and every other engine ends in the
//! same state with the same memory.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

#[path = "programs/reference.rs"]
mod reference;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use reference::Expected;
use tregion::case::image::{DEFAULT_STACK_SIZE, elf};
use tregion::case::{Case, Outcome, Stop};
use tregion::engine::Engine;
use tregion::engine::jit::Jit;
use tregion::engine::sabotaged::{Component, Sabotage, Sabotaged, When};
use tregion::engine::silicon::Silicon;
use tregion::guest::{GuestAddress, PAGE_SIZE, Permissions};
use tregion::oracle::compare::{compare, page_of};

/// Of one program; a hundred times what any takes.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// What a program comes to, given the amount of work.
type Reference = fn(u64) -> Expected;

/// Name, amount of work, reference, and whether that holds for the variant `native` too.
const PROGRAMS: [(&str, u64, Option<Reference>, bool); 16] = [
    ("alu", 100_000, Some(reference::alu), true),
    ("crc32", 2, Some(reference::crc32), true),
    ("fib", 22, Some(reference::fib), true),
    ("hash_table", 100_000, Some(reference::hash_table), true),
    ("interpreter", 2_000, Some(reference::interpreter), true),
    ("jit_guest", 2_000, Some(reference::jit_guest), true),
    ("load_store", 100, Some(reference::load_store), true),
    // The compiler may fuse a multiplication and an addition there, and need not.
    ("matrix_avx2", 2, Some(reference::matrix), false),
    // Rust has no extended precision.
    ("nbody_x87", 1_000, None, false),
    ("pointer_chase", 100_000, Some(reference::pointer_chase), true),
    ("quicksort", 1, Some(reference::quicksort), true),
    ("rep_movs", 5_000, Some(reference::rep_movs), true),
    ("selfmod", 10_000, Some(reference::selfmod), true),
    ("sha256", 1, Some(reference::sha256), true),
    ("string_search", 10, Some(reference::string_search), true),
    ("virtual_calls", 100, Some(reference::virtual_calls), true),
];

/// One of the two ways in which a program is compiled.
struct Program {
    name: String,
    case: Case,
    expected: Option<Expected>,
}

/// All programs, built once; none if there is no compiler.
static BUILT: LazyLock<Vec<Program>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let built: Option<Vec<_>> = PROGRAMS
        .iter()
        .filter(|(name, ..)| *name != "matrix_avx2" || is_x86_feature_detected!("avx2"))
        .map(|program| build(program, folder.path()))
        .collect();
    built.unwrap_or_default().into_iter().flatten().collect()
});

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/programs")
}

/// Both variants of a program, or nothing if there is no compiler.
fn build(
    &(name, work, reference, native_too): &(&str, u64, Option<Reference>, bool),
    folder: &Path,
) -> Option<[Program; 2]> {
    let variants = ["O2", "native"].map(|variant| (variant, format!("{name}-{variant}")));
    let compile = |(variant, output): &(&str, String)| {
        start_compiler(name, variant, work, &folder.join(output))
    };
    // Both start before either is waited for.
    let compilers = [compile(&variants[0])?, compile(&variants[1])?];
    let mut compilers = compilers.into_iter();
    Some(variants.map(|(variant, output)| {
        let result = compilers.next().unwrap().wait_with_output().unwrap();
        assert!(result.status.success(), "{output}: {}", String::from_utf8_lossy(&result.stderr));
        let image = std::fs::read(folder.join(&output)).unwrap();
        let case = elf(&image, DEFAULT_STACK_SIZE).unwrap_or_else(|error| {
            panic!("{output}: {error}");
        });
        let holds = variant == "O2" || native_too;
        let expected = reference.filter(|_| holds).map(|reference| reference(work));
        Program { name: output, case, expected }
    }))
}

fn start_compiler(name: &str, variant: &str, work: u64, output: &Path) -> Option<Child> {
    let own = format!("{name}.flags");
    let own = sources().join(&own).exists().then(|| format!("@{own}"));
    let child = Command::new("cc")
        .current_dir(sources())
        .args(["@flags".to_owned(), format!("@flags-{variant}"), format!("-DWORK={work}")])
        .args(own)
        .arg("-o")
        .arg(output)
        .arg(format!("{name}.c"))
        .stderr(Stdio::piped())
        .spawn();
    match child {
        Ok(child) => Some(child),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: there is no `cc`");
            None
        }
        Err(error) => panic!("cc: {error}"),
    }
}

/// The judge.
fn silicon() -> Silicon {
    let mut silicon = Silicon::new().unwrap();
    silicon.set_time_limit(TIME_LIMIT);
    silicon
}

/// The engines that have to end as silicon does. This is the place to add one.
fn engines() -> Vec<Box<dyn Engine>> {
    vec![Box::new(Silicon::named("silicon again").unwrap()), Box::new(Jit::new().unwrap())]
}

/// The program's name with what `engine` makes of it that silicon does not; empty if all is well.
fn disagreements(engine: &mut dyn Engine) -> Vec<String> {
    engine.set_time_limit(TIME_LIMIT);
    let mut judge = silicon();
    let visible = judge.capabilities().visible.common(engine.capabilities().visible);
    let mut disagreements = Vec::new();
    for Program { name, case, .. } in BUILT.iter() {
        let right = judge.run(case).unwrap();
        match engine.run(case) {
            Ok(other) => {
                let differences = compare(case, &right, &other, visible);
                let first = differences.iter().take(8).map(|difference| {
                    let (left, right) = (difference.left, difference.right);
                    format!("\n  {}: {left}, not {right}", difference.component)
                });
                let first: String = first.collect();
                disagreements.extend((!first.is_empty()).then(|| format!("{name}:{first}")));
            }
            Err(unsupported) => disagreements.push(format!("{name}: {unsupported}")),
        }
    }
    disagreements
}

fn engines_agree(engine: &mut dyn Engine) {
    let disagreements = disagreements(engine);
    let name = engine.name();
    assert!(disagreements.is_empty(), "{name} and silicon:\n{}", disagreements.join("\n"));
}

/// The word at a mapped address after the run.
fn word_at(case: &Case, outcome: &Outcome, address: u64) -> u64 {
    let byte = |index: u64| {
        let address = GuestAddress(address + index);
        let mapping = case.mappings.iter().find(|it| it.range.contains(address)).unwrap();
        let offset = mapping.offset + (address.0 - mapping.range.start().0);
        let page = (offset / PAGE_SIZE) as usize;
        page_of(case, &outcome.memory, mapping.object, page)[(offset % PAGE_SIZE) as usize]
    };
    (0..8).rev().fold(0, |word, index| word << 8 | u64::from(byte(index)))
}

fn mappings(name: &str) -> Option<Vec<(Permissions, u64)>> {
    let program = BUILT.iter().find(|program| program.name == name)?;
    Some(program.case.mappings.iter().map(|it| (it.permissions, it.range.size())).collect())
}

#[test]
fn all_sources_are_in_the_table() {
    let mut names: Vec<String> = std::fs::read_dir(sources())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|file| Some(file.strip_suffix(".c")?.to_owned()))
        .collect();
    names.sort();
    assert_eq!(names, PROGRAMS.map(|(name, ..)| name));
}

#[test]
fn the_references_are_right_where_the_results_are_known() {
    // FIPS 180-4's example, and the check value of CRC-32/ISO-HDLC.
    let digest = reference::sha256_digest(b"abc").map(|word| format!("{word:08x}")).concat();
    let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(digest, known);
    assert_eq!(reference::crc32_of(b"123456789"), 0xcbf4_3926);
    assert_eq!(reference::fib(10), Expected { checksum: 55, results: vec![177] });
}

#[test]
fn silicon_comes_to_what_rust_does() {
    let mut silicon = silicon();
    for Program { name, case, expected } in BUILT.iter() {
        let outcome = silicon.run(case).unwrap();
        assert_eq!(outcome.stop, Stop::Halt, "{name}");
        let [checksum, .., results] = outcome.state.gpr[..8] else { panic!("eight registers") };
        let Some(expected) = expected else { continue };
        let places = (0..expected.results.len() as u64).map(|index| results + 8 * index);
        let results = places.map(|address| word_at(case, &outcome, address)).collect();
        assert_eq!(Expected { checksum, results }, *expected, "{name}");
    }
}

#[test]
fn every_engine_agrees_with_silicon() {
    engines().into_iter().for_each(|mut engine| engines_agree(engine.as_mut()));
}

#[test]
fn an_engine_that_is_wrong_is_seen_in_every_program() {
    let component = Component::Gpr { register: 0, bit: 63 };
    let sabotage = Sabotage { when: When::Always, component };
    let mut wrong = Sabotaged::new(silicon(), sabotage);
    assert_eq!(disagreements(&mut wrong).len(), BUILT.len());
}

#[test]
fn segments_become_mappings_with_their_own_permissions() {
    use Permissions::{ReadExecute, ReadWrite, ReadWriteExecute};
    let stack = (ReadWrite, DEFAULT_STACK_SIZE);
    // One segment for all, which need not begin at a page.
    if let Some(mappings) = mappings("selfmod-O2") {
        assert_eq!(mappings, [(ReadWriteExecute, PAGE_SIZE), stack]);
    }
    // A segment of the program's own, with nothing in the file, beside those of any program.
    if let Some(mappings) = mappings("jit_guest-O2") {
        assert!(mappings.contains(&(ReadWriteExecute, 0x4000)), "{mappings:?}");
        assert!(mappings.contains(&(ReadExecute, PAGE_SIZE)), "{mappings:?}");
    }
    // 32 KiB of zeros and the results, in as few pages as can hold them, or one more.
    if let Some(mappings) = mappings("load_store-O2") {
        let data = (ReadWrite, 9 * PAGE_SIZE..=10 * PAGE_SIZE);
        let is_data = |it: &(Permissions, u64)| it.0 == data.0 && data.1.contains(&it.1);
        assert!(mappings.iter().any(is_data), "{mappings:?}");
    }
}

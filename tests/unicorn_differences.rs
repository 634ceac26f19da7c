//! The table of accepted differences, its cases in `corpora/divergence/` and the document about it:
//! each row has a reason and a case, each case still differs as its rows say, and
//! `docs/unicorn-differences.md` tells of all of them. `UPDATE_DOCS=1` writes the document and the
//! comments above the cases anew.
#![cfg(feature = "unicorn")]
#![allow(clippy::unwrap_used, reason = "a test fails where something is not there")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Formatter, IntelFormatter};
use tregion::campaign::{MINIMISE_TIME, header, minimise_finding, side_by_side};
use tregion::case::{Case, ExceptionVector, Outcome, Stop, text};
use tregion::engine::Engine;
use tregion::engine::isolated::Isolated;
use tregion::engine::silicon::Silicon;
use tregion::guest::{GuestAddress, HostFeatures, Vendor};
use tregion::oracle::ACCEPTED;
use tregion::oracle::compare::Difference;
use tregion::oracle::judge::{EngineVerdict, Finding, judge_outcome};

const DOCUMENT: &str = "docs/unicorn-differences.md";
const FOLDER: &str = "corpora/divergence";

/// The worst differences, in the order in which the document tells of them; the others follow in the order of the table.
const WORST: [&str; 15] = [
    "string-compare-crash",
    "lock-aborts",
    "divide-overflow-crash",
    "rip-relative-immediate",
    "vex-runs-as-sse",
    "horizontal-overlap",
    "cmpxchg-zero-extends",
    "pdep-pext-32",
    "bextr",
    "lahf-sahf-rex",
    "compare-exchange-loses-flags",
    "loop-loses-flags",
    "own-code-write-loses-flags",
    "partial-store",
    "commits-before-fault",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn cases() -> Vec<(String, Case)> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(root().join(FOLDER)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "case"));
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let case = text::parse(&fs::read_to_string(path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (name, case)
    };
    paths.iter().map(read).collect()
}

/// Cases in which Unicorn does as AMD's processors do.
const AS_AMD: [&str; 3] = ["load-too-wide", "operand-size-branch", "x87-unmasked-response-store"];

/// The row of instructions that Unicorn has and Intel's processors have not.
const NEEDS_SSE4A: &str = "bit-field-beyond-quadword";

/// Cases in which it does as Intel's do.
const AS_INTEL: [&str; 5] = [
    "double-shift-beyond-operand",
    "loop-prefix",
    "repe-cmpsb-order",
    "rotate-carry-whole-turns",
    "transactions-are-ignored",
];

/// What came of one case.
struct Shown {
    name: String,
    case: Case,
    outcomes: (Outcome, Outcome),
    differences: Vec<Difference>,
    findings: Vec<Finding>,
    head: String,
}

/// The row that a case's name begins with.
fn row_of(name: &str) -> Option<&'static str> {
    let rows = ACCEPTED.iter().map(|row| row.name);
    rows.filter(|row| name == *row || name.starts_with(&format!("{row}-")))
        .max_by_key(|row| row.len())
}

fn show(
    silicon: &mut Silicon,
    unicorn: &mut dyn Engine,
    name: String,
    case: Case,
) -> Option<Shown> {
    let left = silicon.run(&case).unwrap();
    let right = unicorn.run(&case).unwrap();
    let verdict = judge_outcome(silicon, unicorn, &case, &left, right.clone());
    let EngineVerdict::Differs { differences, findings, .. } = verdict else {
        // A host that lacks the instruction says so itself.
        let lacking = matches!(left.stop, Stop::Exception { vector: ExceptionVector::UD, .. });
        let amd = HostFeatures::detect().vendor() == Vendor::Amd;
        let same = if amd { &AS_AMD[..] } else { &AS_INTEL[..] }.contains(&name.as_str());
        assert!(lacking || same, "{name}: Unicorn agrees with silicon");
        println!("{name}: skipped, this host has no such instruction, or does as Unicorn does");
        return None;
    };
    let replay = format!("tregion replay {FOLDER}/{name}.case");
    let head = findings
        .first()
        .map(|finding| header(silicon, unicorn, &case, finding, &replay))
        .unwrap_or_default();
    Some(Shown { name, case, outcomes: (left, right), differences, findings, head })
}

fn unicorn() -> Isolated {
    let arguments = ["worker", "--engine", "unicorn:unfiltered"].map(str::to_owned).to_vec();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_tregion"));
    Isolated::new(program, arguments, "unicorn").unwrap()
}

fn show_all() -> Vec<Shown> {
    let (mut unicorn, mut silicon) = (unicorn(), Silicon::new().unwrap());
    let sse4a = HostFeatures::detect().has(CpuidFeature::SSE4A);
    let runs = |name: &str| sse4a || row_of(name) != Some(NEEDS_SSE4A);
    let (cases, others): (Vec<_>, Vec<_>) = cases().into_iter().partition(|(name, _)| runs(name));
    others.iter().for_each(|(name, _)| println!("{name}: skipped, this host has no SSE4A"));
    cases
        .into_iter()
        .filter_map(|(name, case)| show(&mut silicon, &mut unicorn, name, case))
        .collect()
}

/// The row looks at the case's bytes, so whoever makes it small has to show it those.
#[test]
fn what_a_row_explains_by_the_case_is_made_small() {
    let (mut unicorn, mut silicon) = (unicorn(), Silicon::new().unwrap());
    let (_, mut case) =
        cases().into_iter().find(|(name, _)| name == "invalid-loses-flags").unwrap();
    case.state.gpr[8..].fill(0x1111);
    let left = silicon.run(&case).unwrap();
    let right = unicorn.run(&case).unwrap();
    let verdict = judge_outcome(&mut silicon, &mut unicorn, &case, &left, right);
    let EngineVerdict::Differs { findings, .. } = verdict else { panic!("it differs") };
    assert!(findings[0].accepted.is_some());
    let small = minimise_finding(&mut silicon, &mut unicorn, &findings[0], MINIMISE_TIME);
    assert_eq!(small.state.gpr[8..], [0; 8]);
}

#[test]
fn rows_have_names_reasons_and_references() {
    let mut names = BTreeSet::new();
    for row in ACCEPTED.iter() {
        assert!(names.insert(row.name), "{} is there twice", row.name);
        assert!(!row.reason.is_empty() && !row.reference.is_empty(), "{}", row.name);
    }
    for name in WORST {
        assert!(names.contains(name), "{name} is no row");
    }
}

#[test]
fn cases_differ_as_the_table_says_and_the_document_tells_of_them() {
    let shown = show_all();
    let mut used = BTreeSet::new();
    let mut complaints = Vec::new();
    for one in &shown {
        if one.findings.is_empty() {
            complaints.push(format!("{}: only in what the manual leaves undefined", one.name));
        }
        for finding in &one.findings {
            match &finding.accepted {
                Some(rows) => used.extend(rows.iter().map(|row| row.name)),
                None => complaints.push(format!("{}: {} is not explained", one.name, finding.key)),
            }
        }
    }
    let named: BTreeSet<&str> = cases().iter().filter_map(|(name, _)| row_of(name)).collect();
    for (name, _) in cases() {
        if row_of(&name).is_none() {
            complaints.push(format!("{name} is not named after a row"));
        }
    }
    for row in ACCEPTED.iter() {
        // Rows whose cases were all skipped on this host are named, but not used.
        let ran = shown.iter().any(|one| row_of(&one.name) == Some(row.name));
        if !named.contains(row.name) || ran && !used.contains(row.name) {
            complaints.push(format!("no case exercises the row {}", row.name));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        update(&shown);
    }
    check_document();
}

fn update(shown: &[Shown]) {
    for one in shown {
        let path = root().join(FOLDER).join(format!("{}.case", one.name));
        fs::write(path, one.head.clone() + &text::print(&one.case)).unwrap();
    }
    fs::write(root().join(DOCUMENT), document(shown)).unwrap();
}

/// Names, reasons, references and case files have to be in the document; results may differ
/// from host
/// to host.
fn check_document() {
    let text = fs::read_to_string(root().join(DOCUMENT)).unwrap();
    let sections: BTreeMap<&str, &str> = text
        .split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').unwrap_or((section, "")))
        .collect();
    for row in ACCEPTED.iter() {
        let section = sections
            .get(row.name)
            .unwrap_or_else(|| panic!("{DOCUMENT} lacks {}: run with UPDATE_DOCS=1", row.name));
        assert!(section.contains(row.reason), "{DOCUMENT}: the reason of {}", row.name);
        assert!(section.contains(row.reference), "{DOCUMENT}: the reference of {}", row.name);
    }
    assert_eq!(sections.len(), ACCEPTED.len(), "{DOCUMENT} tells of rows that are gone");
    for (name, _) in cases() {
        let section = sections[row_of(&name).unwrap()];
        let file = format!("{FOLDER}/{name}.case`");
        assert!(section.contains(&file), "{DOCUMENT} lacks {name}: run with UPDATE_DOCS=1");
    }
}

fn document(shown: &[Shown]) -> String {
    let mut text = format!(
        "# Where Unicorn differs from silicon\n\n\
         Random programs ran on the host's processor and on Unicorn 2.1.5, and everything that a \
         guest can see was\n\
         compared. Each difference was bisected to the instruction that causes it, \
         made small, and looked up here.\n\
         This is the table of `src/oracle/accepted/rows/` with its \
         cases: {} differences, {} cases. The worst come first:\n\
         a crash of the host process, wrong \
         results without a word, lost flags, stores that happen although they fault.\n\n\
         Written by `UPDATE_DOCS=1 cargo test --release --test unicorn_differences`.\n",
        ACCEPTED.len(),
        shown.len()
    );
    let worst = WORST.iter().map(|name| ACCEPTED.iter().find(|row| row.name == *name).unwrap());
    let others = ACCEPTED.iter().filter(|row| !WORST.contains(&row.name));
    for row in worst.chain(others) {
        let _ = write!(text, "\n## {}\n\n{}.\n\n*{}.*\n", row.name, row.reason, row.reference);
        for one in shown.iter().filter(|one| row_of(&one.name) == Some(row.name)) {
            let names = ("silicon", "unicorn");
            let outcomes = (&one.outcomes.0, &one.outcomes.1);
            let table = side_by_side(names, outcomes, &one.differences);
            let _ = write!(
                text,
                "\n`tregion replay {FOLDER}/{}.case`\n\n```text\n{}\n{table}```\n",
                one.name,
                disassembly(&one.case)
            );
        }
    }
    text
}

/// Most instructions shown of a case.
const MAX_SHOWN: usize = 12;

fn disassembly(case: &Case) -> String {
    let code = case.initial_bytes(GuestAddress(case.state.rip)).unwrap_or_default();
    let used = code.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let mut decoder = Decoder::with_ip(64, &code[..used], case.state.rip, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    let mut text = String::new();
    for instruction in decoder.iter().take(MAX_SHOWN) {
        let start = (instruction.ip() - case.state.rip) as usize;
        let bytes: Vec<String> = code[start..start + instruction.len()]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let _ = writeln!(text, "{:30} {line}", bytes.join(" "));
    }
    text
}

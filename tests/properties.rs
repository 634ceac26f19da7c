//! The properties that the fuzz targets check, on fixed seeds and on everything in `corpora/`.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::fs;
use std::path::{Path, PathBuf};

use tregion::generate::choices;
use tregion::properties;

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

fn corpora() -> Vec<PathBuf> {
    let files = files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora"));
    assert!(files.len() > 20, "the corpora are there");
    files
}

#[test]
fn every_file_as_case_text() {
    for file in corpora() {
        properties::case_text(&fs::read(file).unwrap());
    }
}

#[test]
fn every_file_as_choices() {
    for file in corpora() {
        properties::differential(&fs::read(file).unwrap());
    }
}

#[test]
fn every_file_as_input_of_the_other_targets() {
    for file in corpora() {
        let bytes = fs::read(file).unwrap();
        properties::smc_remap(&bytes);
        properties::raw_bytes(&bytes);
        properties::mapping(&bytes);
    }
}

#[test]
fn every_target_has_a_folder_of_seeds_and_is_fuzzed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tools = fs::read_to_string(root.join("tests/fuzz-tools.sh")).unwrap();
    for name in properties::Target::ALL.map(properties::Target::name) {
        assert!(!files_below(&root.join("corpora/fuzz").join(name)).is_empty(), "{name}");
        assert!(root.join("fuzz/fuzz_targets").join(name).with_extension("rs").exists(), "{name}");
        assert!(tools.contains(name), "{name}");
    }
}

#[test]
fn seeds_stay_few_and_small() {
    let seeds = files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora/fuzz"));
    let bytes: u64 = seeds.iter().map(|seed| fs::metadata(seed).unwrap().len()).sum();
    assert!(seeds.len() <= 200 && bytes <= 200 << 10, "{} files, {bytes} bytes", seeds.len());
}

#[test]
fn seeded_choices() {
    let mut bytes = Vec::new();
    for number in 0..2000 {
        choices(0x7e57, number, &mut bytes);
        properties::differential(&bytes);
    }
}

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
fn seeded_choices() {
    let mut bytes = Vec::new();
    for number in 0..2000 {
        choices(0x7e57, number, &mut bytes);
        properties::differential(&bytes);
    }
}

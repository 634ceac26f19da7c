//! The patches of `tests/mutants` still fit: each applies to the sources, and says what it breaks, which
//! invariant that is, and which loom model finds it (`make loom`), which in turn names the patch.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn patches() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(root().join("tests/mutants")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut patches: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    patches.sort();
    assert!(patches.len() >= 30, "the walk finds the patches");
    patches
}

/// The rest of the line of a patch's head that begins with `label`.
fn head(patch: &str, label: &str) -> Option<String> {
    let mut lines = patch.lines().take_while(|line| !line.starts_with("--- "));
    lines.find_map(|line| line.strip_prefix(label)).map(str::to_owned)
}

fn fail_if(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn mutants_apply() {
    let mut complaints = Vec::new();
    for (name, path) in patches() {
        let mut patch = Command::new("patch");
        patch.args(["--dry-run", "--batch", "--force", "--fuzz=0", "-p1", "--input"]).arg(path);
        let done = patch.current_dir(root()).output().expect("`patch` is installed");
        if !done.status.success() {
            let why = String::from_utf8_lossy(&done.stdout).into_owned();
            complaints.push(format!("{name} does not apply any more:\n{why}"));
        }
    }
    fail_if(complaints);
}

#[test]
fn mutants_say_what_they_break() {
    let mut complaints = Vec::new();
    for (name, path) in patches() {
        let text = fs::read_to_string(path).unwrap();
        if head(&text, "Breaks: ").is_none_or(|what| what.len() < 10) {
            complaints.push(format!("{name}: no line `Breaks: …`"));
        }
        let invariant = head(&text, "Invariant: ").unwrap_or_default();
        if invariant.len() != 2 || !invariant.starts_with('I') {
            complaints.push(format!("{name}: no line `Invariant: I…`"));
        }
        let caught_by = head(&text, "Caught by: ").unwrap_or_default();
        if !is_named_by_its_model(&name, &caught_by) {
            complaints.push(format!("{name}: no model `{caught_by}` whose comment names it"));
        }
        if text.matches("\n--- a/src/code/").count() != 1 {
            complaints.push(format!("{name}: does not change one file of src/code"));
        }
    }
    fail_if(complaints);
}

/// Whether the comment of the model `file::function` has the mutant's name.
fn is_named_by_its_model(mutant: &str, model: &str) -> bool {
    let Some((file, function)) = model.split_once("::") else { return false };
    let path = root().join(format!("loom/src/models/{file}.rs"));
    let text = fs::read_to_string(path).unwrap_or_default();
    let Some(end) = text.find(&format!("\nfn {function}(")) else { return false };
    let comment = text[..end].lines().rev().take_while(|line| line.starts_with(['/', '#']));
    comment.flat_map(|line| line.split([' ', ',', '.'])).any(|word| word == mutant)
}

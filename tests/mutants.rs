//! The patches of `tests/mutants` still fit: each applies to the sources, and says what it breaks, which
//! invariant that is, and how it is found: those of `loom` by a model (`make loom`), which in turn names
//! the patch, those of `engine` by a campaign or by a test (`make sabotage`).
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tregion_mutants::Patch;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The patches of a folder, of which there are `least` at least.
fn patches(folder: &str, least: usize) -> Vec<Patch> {
    let patches = Patch::all(&root().join("tests/mutants").join(folder)).unwrap();
    assert!(patches.len() >= least, "the walk finds the patches of {folder}");
    patches
}

fn of_models() -> Vec<Patch> {
    patches("loom", 30)
}

fn of_the_engine() -> Vec<Patch> {
    patches("engine", 60)
}

fn fail_if(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn mutants_apply() {
    let mut complaints = Vec::new();
    for Patch { name, path, .. } in of_models().into_iter().chain(of_the_engine()) {
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

/// What a patch's head lacks that each has.
fn general_complaints(patch: &Patch) -> Vec<String> {
    let (name, mut complaints) = (&patch.name, Vec::new());
    if patch.head("Breaks: ").is_none_or(|what| what.len() < 10) {
        complaints.push(format!("{name}: no line `Breaks: …`"));
    }
    let invariant = patch.head("Invariant: ").unwrap_or_default();
    let numbered = invariant.len() == 2 && invariant.starts_with('I');
    if !numbered && invariant != "semantics" {
        complaints.push(format!("{name}: no line `Invariant: I…`"));
    }
    complaints
}

#[test]
fn mutants_of_models_say_what_they_break() {
    let mut complaints = Vec::new();
    for patch in of_models() {
        complaints.extend(general_complaints(&patch));
        let caught_by = patch.head("Caught by: ").unwrap_or_default();
        let Patch { name, text, .. } = &patch;
        if !is_named_by_its_model(name, caught_by) {
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

#[test]
fn mutants_of_the_engine_say_what_they_break_and_how_it_shows() {
    let mut complaints = Vec::new();
    for patch in of_the_engine() {
        complaints.extend(general_complaints(&patch));
        let Patch { name, text, .. } = &patch;
        match patch.head("Found by: ") {
            Some(test) if test.starts_with("test ") => {
                let named = test.strip_prefix("test ").and_then(|test| test.split_once("::"));
                if !named.is_some_and(|(target, name)| is_a_test(target, name)) {
                    complaints.push(format!("{name}: there is no {test}"));
                }
            }
            Some(how) if how.len() >= 3 => {}
            _ => complaints.push(format!("{name}: no line `Found by: …`")),
        }
        if !text.contains("\n--- a/src/") {
            complaints.push(format!("{name}: changes nothing of src"));
        }
    }
    fail_if(complaints);
}

/// Whether `name`, with its modules, is a test of the library or of a file of `tests`.
fn is_a_test(target: &str, name: &str) -> bool {
    let (modules, function) = name.rsplit_once("::").unwrap_or(("", name));
    let modules = modules.trim_end_matches("tests").trim_end_matches("::").replace("::", "/");
    let folder = if target == "lib" { "src".to_owned() } else { format!("tests/{target}") };
    let path = match modules.as_str() {
        "" => format!("{folder}.rs"),
        modules => format!("{folder}/{modules}.rs"),
    };
    let text = fs::read_to_string(root().join(path)).unwrap_or_default();
    text.contains(&format!("#[test]\nfn {function}("))
        || text.contains(&format!("#[test]\n    fn {function}("))
}

//! Rules of the house that can be checked by reading files.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

use std::fs;
use std::path::{Path, PathBuf};

/// What each folder of `src` may use of the others.
const MAY_USE: [(&str, &[&str]); 16] = [
    ("guest", &[]),
    ("os", &[]),
    ("memory", &["guest", "os"]),
    ("translate", &["guest"]),
    ("code", &["guest", "os", "translate"]),
    ("exec", &["code", "guest", "memory", "os", "translate"]),
    ("concurrent", &["exec", "guest", "os"]),
    ("case", &["guest"]),
    ("engine", &["case", "exec", "guest", "memory", "os"]),
    ("generate", &["case", "guest"]),
    ("oracle", &["case", "engine", "guest"]),
    ("campaign", &["case", "concurrent", "engine", "generate", "guest", "oracle", "os"]),
    (
        "report",
        &["campaign", "case", "concurrent", "engine", "exec", "generate", "guest", "oracle"],
    ),
    (
        "properties",
        &["case", "concurrent", "engine", "exec", "generate", "guest", "memory", "oracle"],
    ),
    ("bench", &["case", "engine", "exec", "guest"]),
    ("cli", &[]),
];

/// Files that may hold unsafe code; ARCHITECTURE.md lists them too.
const UNSAFE_ROOMS: [&str; 19] = [
    "fuzz/launcher/src/counters.rs",
    "loom/src/models/support.rs",
    "loom/src/poison.rs",
    "src/code/arena.rs",
    "src/code/epoch.rs",
    "src/code/index.rs",
    "src/code/table.rs",
    "src/engine/case_memory.rs",
    "src/engine/silicon/child.rs",
    "src/engine/unicorn/library.rs",
    "src/exec/signals.rs",
    "src/exec/vcpu_memory.rs",
    "src/guest/host_features.rs",
    "src/memory/host.rs",
    "src/os/heap.rs",
    "src/os/membarrier.rs",
    "src/os/thread_clock.rs",
    "tests/jit_hostile/canaries.rs",
    "tests/machine_api/process.rs",
];

/// Where our sources are.
const FOLDERS: [&str; 9] = [
    "src",
    "tests",
    "fuzz/src",
    "fuzz/fuzz_targets",
    "fuzz/launcher/src",
    "fuzz/launcher/tests",
    "loom/src",
    "mutants/src",
    "sabotage/src",
];

const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = FOLDERS.map(|folder| root().join(folder)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(files.len() > 50, "the walk finds the sources");
    files
}

fn fail_if(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn files_open_with_a_contract_and_are_not_too_long() {
    let mut complaints = Vec::new();
    for (name, text) in rust_files() {
        if !text.starts_with("//! ") {
            complaints.push(format!("{name}: does not open with `//!`"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            complaints.push(format!("{name}: {lines} lines, {MAX_LINES} are the most"));
        }
    }
    fail_if(complaints);
}

#[test]
fn folders_depend_downwards_only() {
    let mut complaints = Vec::new();
    for (name, text) in rust_files() {
        let Some(inside) = name.strip_prefix("src/") else { continue };
        let Some((_, may_use)) = MAY_USE
            .iter()
            .find(|(folder, _)| inside == *folder || inside.starts_with(&format!("{folder}/")))
        else {
            let known = ["lib.rs", "main.rs"].contains(&inside);
            complaints.extend((!known).then(|| format!("{name}: its folder is not in the table")));
            continue;
        };
        let own = inside.split('/').next().unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let known = MAY_USE.iter().any(|(folder, _)| *folder == used);
                if known && used != own && !may_use.contains(&used.as_str()) {
                    let line = number + 1;
                    complaints.push(format!("{name}:{line}: `{own}` may not use `{used}`"));
                }
            }
        }
    }
    fail_if(complaints);
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut complaints = Vec::new();
    for (name, text) in rust_files() {
        let opens = text.contains("#![allow(unsafe_code");
        let room = UNSAFE_ROOMS.contains(&name.as_str());
        // This file speaks of it.
        if opens && !room && name != "tests/tidy.rs" {
            complaints.push(format!("{name}: opens unsafe code and is not a room for it"));
        }
        if room && (!opens || !text.contains("reason = ") || !architecture.contains(&name)) {
            complaints
                .push(format!("{name}: a room needs its reason and a line in ARCHITECTURE.md"));
        }
    }
    fail_if(complaints);
}

#[test]
fn allowances_have_reasons() {
    let mut complaints = Vec::new();
    for (name, text) in rust_files() {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let allows = line.starts_with("#[allow(") || line.starts_with("#![allow(");
            let rest: String = text.lines().skip(number).take(6).collect();
            if allows && !rest.split(']').next().unwrap_or_default().contains("reason") {
                complaints.push(format!("{name}:{}: an `allow` without a reason", number + 1));
            }
        }
    }
    fail_if(complaints);
}

#[test]
fn paths_named_in_the_documents_exist() {
    let mut documents = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { documents.push(path) }
        }
    }
    let mut complaints = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for word in text.split(|c: char| c.is_whitespace() || "`()[],;|".contains(c)) {
            let word = word.trim_end_matches(['.', ':', '/']);
            let starts = ["src/", "tests/", "docs/", "corpora/", "fuzz/fuzz_targets"];
            let path = starts.iter().any(|start| word.starts_with(start)) && !word.contains('*');
            if path && !root().join(word).exists() {
                complaints.push(format!("{}: there is no {word}", document.display()));
            }
        }
    }
    fail_if(complaints);
}

#[test]
fn documents_and_scripts_are_there() {
    for file in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(Path::new(&root().join(file)).exists(), "{file}");
    }
    let lines = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap().lines().count();
    assert!(lines <= 300, "ARCHITECTURE.md has {lines} lines");
}

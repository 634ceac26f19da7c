//! [`Workshop`]: a copy of the project that patches are applied to, and its builds.
//!
//! The copy is kept and only what differs is written to it, so a build does again what a patch changes
//! and no more.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bug::Test;

/// What a build of the command line and of the tests takes.
const FOLDERS: [&str; 6] = ["src", "tests", "benches", "examples", "corpora", "docs"];
const FILES: [&str; 4] = ["Cargo.toml", "Cargo.lock", "README.md", "ARCHITECTURE.md"];
const FLAGS: [&str; 7] =
    ["--profile", "sabotage", "--no-default-features", "--features", "cli", "--locked", "--quiet"];

#[derive(Debug)]
pub(crate) struct Workshop {
    /// The project's folder.
    pub(crate) root: PathBuf,
    /// Where everything goes that is made.
    pub(crate) target: PathBuf,
    copy: PathBuf,
}

impl Workshop {
    pub(crate) fn new() -> Result<Self, String> {
        let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let root = root.canonicalize().map_err(|error| format!("{root:?}: {error}"))?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| root.join("target"));
        let copy = target.join("sabotage-copy");
        make(&copy)?;
        Ok(Self { root, target, copy })
    }

    /// Makes the copy what the project is.
    pub(crate) fn restore(&self) -> Result<(), String> {
        for folder in FOLDERS {
            mirror(&self.root.join(folder), &self.copy.join(folder))?;
        }
        FILES.iter().try_for_each(|file| bring(&self.root.join(file), &self.copy.join(file)))
    }

    /// Applies a patch to the copy.
    pub(crate) fn apply(&self, patch: &Path) -> Result<(), String> {
        let mut command = Command::new("patch");
        command.args(["-p1", "--fuzz=0", "--batch", "--forward", "--no-backup-if-mismatch"]);
        command.arg("--input").arg(patch).current_dir(&self.copy);
        output(&mut command).map(drop).map_err(|message| format!("does not apply: {message}"))
    }

    /// The command line of the copy.
    pub(crate) fn build(&self) -> Result<PathBuf, String> {
        let mut cargo = self.cargo("build");
        cargo.args(["--bin", "tregion"]);
        output(&mut cargo).map_err(|message| format!("does not build: {message}"))?;
        Ok(self.target.join("sabotage/tregion"))
    }

    /// The program that has a test of the copy.
    pub(crate) fn build_test(&self, test: &Test) -> Result<PathBuf, String> {
        let mut cargo = self.cargo("test");
        cargo.args(["--no-run", "--message-format=json"]);
        match test.target.as_str() {
            "lib" => cargo.arg("--lib"),
            target => cargo.args(["--test", target]),
        };
        let messages = output(&mut cargo).map_err(|text| format!("does not build: {text}"))?;
        let mut programs = messages.lines().filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let test = message["profile"]["test"].as_bool() == Some(true);
            message["executable"].as_str().filter(|_| test).map(PathBuf::from)
        });
        programs.next_back().ok_or_else(|| "cargo names no test program".to_owned())
    }

    fn cargo(&self, what: &str) -> Command {
        let mut cargo = Command::new(std::env::var("CARGO").unwrap_or("cargo".to_owned()));
        cargo.arg(what).args(FLAGS).current_dir(&self.copy);
        cargo.env("CARGO_TARGET_DIR", &self.target).env_remove("RUSTFLAGS");
        cargo
    }
}

/// What the command prints, or the end of all that it says if it fails.
fn output(command: &mut Command) -> Result<String, String> {
    let done = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(text);
    }
    Err(format!("{text}{}", String::from_utf8_lossy(&done.stderr)))
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{folder:?}: {error}"))
}

/// Makes `to` a copy of `from`, writing only what differs.
fn mirror(from: &Path, to: &Path) -> Result<(), String> {
    make(to)?;
    let names = names(from)?;
    for name in &names {
        let (from, to) = (from.join(name), to.join(name));
        if from.is_dir() { mirror(&from, &to)? } else { bring(&from, &to)? }
    }
    for left_over in self::names(to)?.difference(&names) {
        let path = to.join(left_over);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| format!("{path:?}: {error}"))?;
    }
    Ok(())
}

fn names(folder: &Path) -> Result<BTreeSet<std::ffi::OsString>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{folder:?}: {error}"))?;
    Ok(entries.flatten().map(|entry| entry.file_name()).collect())
}

fn bring(from: &Path, to: &Path) -> Result<(), String> {
    let new = fs::read(from).map_err(|error| format!("{from:?}: {error}"))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).map_err(|error| format!("{to:?}: {error}"))
}
